"""Policies and value networks from settings, and the tanh-normal actor."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg.modules import (
    AutoregressiveMulticategoricalActor,
    FlowActor,
    MulticategoricalActor,
    PolicySettings,
    policy,
    state_action_value_network,
    state_value_network,
)

NAMES = {
    "multicategorical": MulticategoricalActor,
    "autoregressive": AutoregressiveMulticategoricalActor,
    "flow": FlowActor,
    "gaussian": nn.Module,
}


@pytest.fixture(scope="module")
def env() -> GymEnv:
    return GymEnv("Pendulum-v1")


def small(name: str, **arguments) -> PolicySettings:
    return PolicySettings(name=name, num_cells=[16, 12], **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_policies_drive_an_environment(name: str, env: GymEnv) -> None:
    actor = policy(small(name), env)
    assert isinstance(actor, NAMES[name])
    with torch.no_grad():
        rollout = env.rollout(5, actor)
    assert env.full_action_spec["action"].is_in(rollout["action"])
    log_prob = actor.get_dist(rollout.clone()).log_prob(rollout[actor.stored_action_key])
    assert log_prob.shape == (5,)
    torch.testing.assert_close(log_prob, rollout["action_log_prob"], rtol=0, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_exploration_repeats(name: str, env: GymEnv) -> None:
    actor, td = policy(small(name), env), TensorDict({"observation": torch.randn(7, 3)}, [7])
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        first, second = actor(td.clone())["action"], actor(td.clone())["action"]
    assert torch.equal(first, second)
    with set_exploration_type(ExplorationType.RANDOM):
        assert not torch.equal(actor(td.clone())["action"], actor(td.clone())["action"])


@pytest.mark.parametrize("name", NAMES)
def test_sizes_ignore_the_batch_of_the_environment(name: str) -> None:
    env = SerialEnv(2, lambda: GymEnv("Pendulum-v1"))
    actor = policy(small(name), env)
    with torch.no_grad():
        assert env.rollout(2, actor)["action"].shape == (2, 2, 1)
    env.close()


@pytest.mark.parametrize("name", NAMES)
def test_distributions_outlive_a_swap_of_parameters(name: str, env: GymEnv) -> None:
    """Losses build online and target distributions from one module, and score afterwards."""
    online, other = policy(small(name), env), policy(small(name), env)
    td = online(TensorDict({"observation": torch.randn(7, 3)}, [7])).detach()
    with TensorDict.from_module(other).to_module(online):
        swapped = online.get_dist(td)
    action = td[online.stored_action_key]
    torch.testing.assert_close(swapped.log_prob(action), other.get_dist(td).log_prob(action))
    if name != "flow":  # flows start alike
        assert not torch.allclose(swapped.log_prob(action), online.get_dist(td).log_prob(action))
    pickle.loads(pickle.dumps(copy.deepcopy(online)))(td)


def test_settings_reach_the_actors(env: GymEnv) -> None:
    assert policy(small("multicategorical", num_bins=7), env).network[-1].out_features == 7
    assert isinstance(policy(small("multicategorical", activation="tanh"), env).network[1], nn.Tanh)
    assert not policy(small("multicategorical", initialization="glorot_uniform"), env).network[0].bias.any()
    head = policy(small("autoregressive", num_bins=5, head_cells=9, condition=False), env)
    assert head.features.in_features == 12 and head.output.weight.shape == (5, 9) and not head.condition
    flow = policy(small("flow", flow_layers=3, flow_cells=10, max_log_scale=0.5), env)
    assert flow.weight_in.shape == (3, 10, 1) and flow.max_log_scale == 0.5 and flow.features.in_features == 12
    gaussian = policy(small("gaussian", scale_lb=7.0), env)
    assert (gaussian.get_dist(TensorDict({"observation": torch.zeros(3)}, [])).scale == 7).all()


def test_value_networks(env: GymEnv) -> None:
    v, q = (
        state_value_network(PolicySettings(num_cells=[8]), env),
        state_action_value_network(PolicySettings(num_cells=[8, 4], activation="tanh"), env),
    )
    td = TensorDict({"observation": torch.randn(5, 3), "action": torch.randn(5, 1)}, [5])
    assert v(td)["state_value"].shape == q(td)["state_action_value"].shape == (5, 1)
    other = q(td.clone().set("action", td["action"] + 1))["state_action_value"]
    assert not torch.equal(other, td["state_action_value"])


class Specs:
    """Just the specs of an environment."""

    def __init__(self, action, observation=None) -> None:
        self.full_action_spec_unbatched = {"action": action}
        self.observation_spec = {"observation": observation or Unbounded(shape=(3,))}
        self.batch_size = torch.Size([])


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (Unbounded(shape=(2,)), "needs a bounded action space"),
        (Bounded(low=-1, high=torch.inf, shape=(2,)), "needs a bounded action space"),
        (Bounded(low=-1, high=1, shape=(2, 2)), r"actions that are vectors, got shape \[2, 2\]"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_bad_action_spaces(name: str, action, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        policy(small(name), Specs(action))  # type: ignore[arg-type]


def test_discrete_actions_and_images_are_refused() -> None:
    cart_pole = GymEnv("CartPole-v1")
    with pytest.raises(ValueError, match="needs a bounded box of actions, got the discrete OneHot"):
        policy(small("gaussian"), cart_pole)
    with pytest.raises(ValueError, match="needs a bounded box of actions"):
        state_action_value_network(PolicySettings(num_cells=[8]), cart_pole)
    specs = Specs(Bounded(low=-1, high=1, shape=(2,)), Unbounded(shape=(3, 8, 8)))
    with pytest.raises(ValueError, match=r"observations that are vectors, got shape \[3, 8, 8\]"):
        state_value_network(PolicySettings(num_cells=[8]), specs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"name": "beta"},
            "PolicySettings.name must be one of multicategorical, autoregressive, flow, gaussian, sampler, got 'beta'",
        ),
        ({"num_cells": []}, r"num_cells must list widths >= 1, got \[\]"),
        ({"num_cells": [8, 0]}, r"num_cells must list widths >= 1, got \[8, 0\]"),
        ({"activation": "gelu"}, "activation must be one of relu, tanh, elu, silu, got 'gelu'"),
        ({"initialization": "zeros"}, "initialization must be .* got 'zeros'"),
        ({"num_bins": 1}, "num_bins must be at least 2, got 1"),
        ({"name": "gaussian", "scale_lb": 0.0}, "scale_lb must be > 0, got 0.0"),
    ],
)
def test_bad_settings(arguments: dict, sentence: str, env: GymEnv) -> None:
    with pytest.raises(ValueError, match=sentence):
        policy(PolicySettings(**arguments), env)
