"""Q-values as means of atoms and quantiles."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg.modules import CategoricalQActor, ImplicitQuantileNetwork, QuantileQActor


def act(actor: nn.Module, count: int = 20_000, kind: ExplorationType = ExplorationType.RANDOM, **extra: torch.Tensor):
    torch.manual_seed(0)
    with set_exploration_type(kind):
        return actor(TensorDict({"observation": torch.zeros(count, 1), **extra}, [count]))


def quantile_actor(num_quantiles: int) -> QuantileQActor:
    torch.manual_seed(1)
    net = ImplicitQuantileNetwork(nn.Linear(1, 8), num_features=8, num_actions=3, num_cosines=6, num_cells=8)
    return QuantileQActor(net, spec=Categorical(3), num_quantiles=num_quantiles)


def test_quantile_actor_averages_midpoints_when_deterministic() -> None:
    actor = quantile_actor(4)
    out = act(actor, 2, ExplorationType.DETERMINISTIC)
    z = actor.quantile_network(torch.zeros(2, 1), torch.tensor([0.125, 0.375, 0.625, 0.875]).expand(2, 4))
    torch.testing.assert_close(out["action_value"], z.mean(1))
    assert (out["action"] == z.mean(1).argmax(-1)).all()


def test_quantile_actor_draws_fractions_when_exploring() -> None:
    values = act(quantile_actor(4), 4_000)["action_value"]
    assert not torch.equal(values[0], values[1])
    exact = act(quantile_actor(1_000), 1, ExplorationType.DETERMINISTIC)["action_value"][0]
    torch.testing.assert_close(values.mean(0), exact, rtol=0, atol=0.01)


def test_quantile_actor_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match="num_quantiles must be >= 1"):
        quantile_actor(0)


def test_atoms_stay_exact_whatever_the_actor_is_cast_to() -> None:
    actor = CategoricalQActor(nn.Linear(1, 7 * 3), num_atoms=7, value_min=-0.3, value_max=0.4, spec=Categorical(3))
    for cast in ("float", "bfloat16", "double"):
        support = getattr(actor, cast)().distribution.support
        assert torch.equal(support, torch.linspace(-0.3, 0.4, 7, dtype=torch.float64))
    logits = torch.zeros(2, 7, 3, dtype=torch.float64)
    torch.testing.assert_close(actor.distribution.mean(logits), torch.full_like(logits[:, 0], 0.05), rtol=0, atol=1e-15)
