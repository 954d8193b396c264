"""Policies and value networks from settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Categorical, Unbounded
from torchrl.envs import GymEnv, SerialEnv

from torchrl_reg.modules import (
    AutoregressiveMulticategoricalActor,
    FlowActor,
    MulticategoricalActor,
    PolicySettings,
    StochasticSamplerActor,
    policy,
    state_action_value_network,
    state_value_network,
)

NAMES = {
    "multicategorical": MulticategoricalActor,
    "autoregressive": AutoregressiveMulticategoricalActor,
    "flow": FlowActor,
    "gaussian": nn.Module,
    "sampler": StochasticSamplerActor,
}


@pytest.fixture(scope="module")
def env() -> GymEnv:
    return GymEnv("Pendulum-v1")


def small(name: str, **arguments: Any) -> PolicySettings:
    return PolicySettings(name=name, num_cells=[16, 12], **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_policies_drive_several_environments(name: str) -> None:
    env = SerialEnv(2, lambda: GymEnv("Pendulum-v1"))
    actor = policy(small(name), env)
    assert isinstance(actor, NAMES[name])
    with torch.no_grad():
        rollout = env.rollout(5, actor)
    assert rollout["action"].shape == (2, 5, 1) and rollout["action"].abs().max() <= 2
    if name != "sampler":
        log_prob = actor.get_dist(rollout.clone()).log_prob(rollout[actor.stored_action_key])
        torch.testing.assert_close(log_prob, rollout["action_log_prob"], rtol=0, atol=0.01)
    env.close()


@pytest.mark.parametrize(
    ("settings", "holds"),
    [
        (small("multicategorical", num_bins=7), lambda a: a.network[-1].out_features == 7),
        (small("multicategorical", activation="tanh"), lambda a: isinstance(a.network[1], nn.Tanh)),
        (small("multicategorical", initialization="glorot_uniform"), lambda a: not a.network[0].bias.any()),
        (small("autoregressive", head_cells=9, num_bins=5), lambda a: a.output.weight.shape == (5, 9)),
        (small("autoregressive", condition=False), lambda a: a.features.in_features == 12 and not a.condition),
        (small("flow", flow_layers=3, flow_cells=10), lambda a: a.weight_in.shape == (3, 10, 1)),
        (small("flow", max_log_scale=0.5), lambda a: a.max_log_scale == 0.5 and a.features.in_features == 12),
        (small("sampler", skip=False), lambda a: not a.skip and a.first.out_features == 16),
        (
            small("gaussian", scale_lb=7.0),
            lambda a: (a.get_dist(TensorDict({"observation": torch.zeros(3)}, [])).scale == 7).all(),
        ),
    ],
)
def test_settings_reach_the_actors(settings: PolicySettings, holds: Any, env: GymEnv) -> None:
    assert holds(policy(settings, env))


def test_value_networks(env: GymEnv) -> None:
    v = state_value_network(PolicySettings(num_cells=[8]), env)
    q = state_action_value_network(PolicySettings(num_cells=[8, 4], activation="tanh"), env)
    td = TensorDict({"observation": torch.randn(5, 3), "action": torch.randn(5, 1)}, [5])
    assert v(td)["state_value"].shape == q(td)["state_action_value"].shape == (5, 1)
    other = q(td.clone().set("action", td["action"] + 1))["state_action_value"]
    assert not torch.equal(other, td["state_action_value"])


def specs(action: Any, observation: int | tuple[int, ...] = 3) -> Any:
    """Just the specs of an environment."""
    seen = {"observation": Unbounded(shape=torch.Size([observation] if isinstance(observation, int) else observation))}
    return SimpleNamespace(full_action_spec_unbatched={"action": action}, observation_spec=seen, batch_size=())


VECTOR = Bounded(low=-1, high=1, shape=(2,))
IMAGES, DISCRETE = specs(VECTOR, (3, 8, 8)), specs(Categorical(2))


@pytest.mark.parametrize(
    ("build", "env", "arguments", "sentence"),
    [
        *((policy, specs(Unbounded(shape=(2,))), {"name": name}, "needs a bounded action space") for name in NAMES),
        (policy, specs(Bounded(-1, 1, shape=(2, 2))), {}, r"actions that are vectors, got shape \[2, 2\]"),
        (policy, DISCRETE, {}, "needs a bounded box of actions, got the discrete Categorical"),
        (state_action_value_network, DISCRETE, {}, "needs a bounded box of actions"),
        (state_value_network, IMAGES, {}, r"observations that are vectors, got shape \[3, 8, 8\]"),
        (policy, IMAGES, {}, r"observations that are vectors, got shape \[3, 8, 8\]"),
        (policy, specs(VECTOR), {"name": "beta"}, "autoregressive, flow, gaussian, sampler, got 'beta'"),
        (policy, specs(VECTOR), {"num_cells": []}, r"num_cells must list widths >= 1, got \[\]"),
        (policy, specs(VECTOR), {"num_cells": [8, 0]}, r"num_cells must list widths >= 1, got \[8, 0\]"),
        (policy, specs(VECTOR), {"activation": "gelu"}, "activation must be one of relu, tanh, elu, silu, got 'gelu'"),
        (policy, specs(VECTOR), {"initialization": "zeros"}, "initialization must be .* got 'zeros'"),
        (policy, specs(VECTOR), {"num_bins": 1}, "num_bins must be at least 2, got 1"),
    ],
)
def test_what_does_not_fit(build: Any, env: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(PolicySettings(**arguments), env)
