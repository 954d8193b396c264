"""Policies and value networks from settings, and the tanh-normal actor."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs import GymEnv, SerialEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import TanhNormal

from torchrl_reg.modules import (
    AutoregressiveMulticategoricalActor,
    FlowActor,
    MulticategoricalActor,
    PolicySettings,
    StochasticSamplerActor,
    gaussian_actor,
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


# The tanh-normal actor.


def test_gaussian_log_prob_is_finite_on_the_bounds() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=[-2.3, -1.0], high=[0.7, 1.0])
    dist = actor.get_dist(TensorDict({"observation": torch.randn(4)}, []))
    assert isinstance(dist, TanhNormal)
    log_prob = dist.log_prob(torch.tensor([[-2.3, -1.0], [0.7, 1.0], [0.7, -1.0]]))
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in actor.parameters())


def test_gaussian_keeps_its_bounds_and_follows_its_network() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=[-2.3, -1.0], high=[0.7, 1.0])
    data = TensorDict({"observation": torch.randn(5, 4)}, [5])
    with torch.inference_mode():  # what is made here has no gradient later
        actor(data)
    for rows in (data, data, data[:1], data.double()):
        actor.to(rows["observation"].dtype)
        dist, (loc, scale) = actor.get_dist(rows), actor.module[0](rows.clone()).select("loc", "scale").values()
        low, high = (torch.tensor(bound, dtype=loc.dtype) for bound in ([-2.3, -1.0], [0.7, 1.0]))
        plain = TanhNormal(loc, scale, low=low, high=high)
        torch.manual_seed(0)
        sample = dist.sample()
        torch.manual_seed(0)
        torch.testing.assert_close(sample, plain.sample(), rtol=0, atol=0)
        torch.testing.assert_close(dist.log_prob(sample), plain.log_prob(sample), rtol=0, atol=0)
        dist.rsample().sum().backward()
        assert not sample.requires_grad


def test_gaussian_keys_and_scales() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=-1.0, high=1.0, in_keys=["x"], scale_lb=0.3)
    td = actor(TensorDict({"x": 1e3 * torch.randn(50, 4)}, [50]))
    assert actor.stored_action_key == "action"
    assert {"action", "action_log_prob", "loc", "scale"} <= set(td.keys())
    assert td["scale"].min() == torch.tensor(0.3) and td["action"].abs().max() <= 1


def test_gaussian_compiles_in_one_graph() -> None:
    actor = gaussian_actor(nn.Linear(4, 4), low=[-2.3, -1.0], high=[0.7, 1.0])

    def both(td: TensorDict, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return actor(td)["action"], actor.get_dist(td).log_prob(action)

    td, replayed = TensorDict({"observation": torch.randn(5, 4)}, [5]), torch.zeros(5, 2)
    action, log_prob = torch.compile(both, fullgraph=True, backend="eager")(td, replayed)
    dist = actor.get_dist(td)
    torch.testing.assert_close(log_prob, dist.log_prob(replayed))
    torch.testing.assert_close(td["action_log_prob"], dist.log_prob(action), rtol=0, atol=0.01)


def test_gaussian_needs_a_box() -> None:
    with pytest.raises(ValueError, match="needs a bounded action space"):
        gaussian_actor(nn.Linear(4, 2), low=-1.0, high=torch.inf)


def test_the_box_is_exact_in_float64_and_of_the_networks_dtype() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        network = nn.Linear(4, 2).to(dtype)
        network.bias.data[0] = 1e4  # every action at the upper bound
        data = TensorDict({"observation": torch.zeros(3, 4, dtype=dtype)}, [3])
        actor = gaussian_actor(network, low=[-0.2], high=[0.1])
        dist = actor.get_dist(data)
        assert dist.high.item() == torch.tensor(0.1, dtype=dtype).item() and dist.high.dtype == dtype
        out = actor(data.clone())
        assert out["action"].dtype == dtype and (out["action"].double() - 0.1).abs().max() < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("kind", [FlowActor, StochasticSamplerActor])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_actor_on_a_torso_has_its_dtype(kind: Any, dtype: torch.dtype) -> None:
    actor = kind(nn.Linear(4, 8).to(dtype), 8, low=torch.tensor([-2.3, -1.0]), high=torch.tensor([0.7, 1.0]))
    out = actor(TensorDict({"observation": torch.randn(3, 4, dtype=dtype)}, [3]))
    assert out["action"].dtype == actor.low.dtype == dtype
