"""Policy churn, action swaps, rank of the features, dead units: their values; training is the same without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.lab.learners.network_diagnostics import effective_rank, with_network_diagnostics
from torchrl_reg.modules import NoisyLinear


def swapped(actor: Any, rows: int) -> Any:
    """An update that turns the greedy action of the last ``rows`` of eight states."""

    def update(minibatch: TensorDict) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            actor.module[0].module[-1].bias[:] = torch.tensor([0.0, rows - 0.5])
        return {"loss": torch.zeros(())}

    return update


@pytest.mark.parametrize("rows", [0, 3])
def test_values(rows: int) -> None:
    """Features x, x, 0 of states 7 .. 0, and q = (x, 0) before, (x, rows - 1/2) after."""
    first, last = nn.Linear(1, 3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight[:], first.bias[:] = torch.tensor([[1.0], [1.0], [-1.0]]), torch.tensor([0.0, 0.0, -0.1])
        last.weight[:], last.bias[:] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0.0, -0.5])
    actor = QValueActor(nn.Sequential(first, nn.ReLU(), last), spec=Categorical(2))
    data = TensorDict({"observation": torch.arange(8.0).flip(0).unsqueeze(-1)}, [8])
    due = iter([True, False])
    update = with_network_diagnostics(swapped(actor, rows), actor, lambda: next(due))
    scalars = update(data)
    assert scalars["policy_churn"].item() == pytest.approx(rows / 8)
    assert scalars["effective_rank"] == 1 and scalars["dead_units"].item() == pytest.approx(1 / 3)
    assert set(update(data)) == {"loss"} and set(data.keys()) == {"observation"}  # without s' no action_swaps
    assert actor.training and not last._forward_pre_hooks


def test_actions_that_swap_from_s_to_what_follows() -> None:
    """``q = (x, 0)`` before, ``(x, 2.5)`` after the update: the greedy action is 0 from x = 3 on; -1 is terminal."""
    actor = QValueActor(nn.Sequential(nn.Linear(1, 2)), spec=Categorical(2))
    with torch.no_grad():
        actor.module[0].module[0].weight[:], actor.module[0].module[0].bias[:] = torch.tensor([[1.0], [0.0]]), 0.0
    x, following = torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([[1.0], [3.0], [4.0], [-1.0]])
    after = {"observation": following, "terminated": following < 0}
    data = TensorDict({"observation": x, "next": after}, [4])
    scalars = with_network_diagnostics(swapped(actor, 3), actor, lambda: True)(data)
    assert scalars["action_swaps"].item() == pytest.approx(1 / 3)
    assert scalars["policy_churn"].item() == 0.5  # those of 0, whose tie went to the first action, and of 1


def test_rank_is_that_of_the_share() -> None:
    features = torch.diag(torch.tensor([90.0, 8.0, 1.5, 0.5]))
    assert [int(effective_rank(features, share)) for share in (0.89, 0.97, 0.99, 0.999)] == [1, 2, 3, 4]


def test_it_draws_nothing() -> None:
    actor = QValueActor(nn.Sequential(NoisyLinear(1, 4), nn.ReLU(), NoisyLinear(4, 2)), spec=Categorical(2))
    update = with_network_diagnostics(lambda _: {}, actor, lambda: True)
    data, state = TensorDict({"observation": torch.rand(5, 1)}, [5]), torch.get_rng_state()
    assert update(data)["policy_churn"] == 0
    assert torch.equal(torch.get_rng_state(), state)
