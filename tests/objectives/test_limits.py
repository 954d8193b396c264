"""Methods that are the same in a limit give the same loss, gradient included."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor
from torchrl_reg.objectives import PolyakTargetUpdate, QLearningLoss

TINY = 1e-12


def gradient(loss: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in loss.parameters()])


def assert_same(first: Any, second: Any, data: Any, atol: float = 1e-10) -> None:
    for loss in (first, second):
        loss.double()
        loss.zero_grad()
        torch.manual_seed(5)
        loss(data)["loss"].backward()
    torch.manual_seed(5)
    one = first(data)["loss"]
    torch.manual_seed(5)
    torch.testing.assert_close(one, second(data)["loss"], rtol=0, atol=atol)
    torch.testing.assert_close(gradient(first), gradient(second), rtol=0, atol=atol)


def stock_dqn(cases: Any) -> DQNLoss:
    reference = cases["m_dqn"].loss()
    loss = DQNLoss(cases["m_dqn"].actor(), loss_function="smooth_l1")
    PolyakTargetUpdate(loss, rate=0.5)
    loss.target_value_network_params.data.update_(reference.target_value_network_params.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.tensor(tensor): TorchRL copies a tensor gamma
        loss.make_value_estimator(gamma=torch.tensor(0.9, dtype=torch.float64))
    return loss


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("soft_dqn", {"tau": TINY}),
        ("m_dqn", {"tau": TINY, "alpha": 0.0}),
        ("mirl", {"beta": 1 / TINY}),
        ("al", {"alpha": 0.0}),
        ("pal", {"alpha": 0.0}),
    ],
)
def test_stock_dqn_is_a_limit(cases: Any, batch: Any, name: str, kwargs: dict[str, Any]) -> None:
    data, other = batch(20, dtype=torch.float64), batch(20, dtype=torch.float64)
    ours, stock = cases[name].loss(**kwargs), stock_dqn(cases)
    assert_same(ours, stock, data)
    ours(data), stock(other)
    torch.testing.assert_close(data["td_error"], other["td_error"])


def even(features: torch.Tensor, count: int) -> torch.Tensor:
    return ((torch.arange(count) + 0.3) / count).double().expand(*features.shape[:-1], count)


@pytest.mark.parametrize(
    ("name", "kwargs", "limit"),
    [
        ("m_dqn", {"alpha": 0.0}, "soft_dqn"),
        ("m_dqn", {"tau": TINY, "clip_min": None}, "al"),
        ("mi_iqn_reuse", {"beta": 1 / TINY}, "iqn_reuse"),
        # The policy's fractions are drawn in another order, so both reuse the target's.
        ("m_iqn_reuse", {"tau": TINY, "alpha": 0.0}, "iqn_reuse"),
    ],
)
def test_one_loss_is_the_limit_of_another(
    cases: Any, batch: Any, name: str, kwargs: dict[str, Any], limit: str
) -> None:
    losses = cases[name].loss(**kwargs), cases[limit].loss()
    for loss in losses:
        loss.head.fractions = even
    assert_same(*losses, batch(20, dtype=torch.float64))


def test_a_uniform_prior_is_soft_dqn_less_the_log_of_the_actions(cases: Any, batch: Any) -> None:
    """SQL in its mellowmax form: every bootstrapped target lies gamma ln A / beta lower, n steps gamma^n."""
    data = batch(20, dtype=torch.float64)
    sql, soft = cases["mirl"].loss(prior=None).double(), cases["soft_dqn"].loss().double()
    assert float(sql.beta) == 1 / float(soft.tau) == 2.0
    for steps in (1, 3):
        data["steps_to_next_obs"] = torch.full((20, 1), steps)
        shifted = data.clone()
        shifted["next", "reward"] -= 0.9**steps * math.log(3) / 2.0 * (~data["next", "terminated"]).double()
        found, expected = sql(data)["loss"], soft(shifted)["loss"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        gradients = [torch.autograd.grad(x, list(m.parameters())) for x, m in ((found, sql), (expected, soft))]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_deterministic_returns_have_the_target_of_dqn(batch: Any) -> None:
    """Equal quantiles, or atoms that are all the mass between two neighbours, are numbers: TD errors are DQN's."""
    torch.manual_seed(0)
    data, linear = batch(50, dtype=torch.float64), nn.Linear(4, 3).double()
    data["next", "reward"] *= 0.3  # all returns within the grid
    repeated = nn.Linear(4, 15).double()
    repeated.weight.data, repeated.bias.data = linear.weight.data.repeat(5, 1), linear.bias.data.repeat(5)
    grid = torch.linspace(-20, 20, 81, dtype=torch.float64)

    class Atoms(nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            distance = (linear(observation).unsqueeze(-2) - grid.unsqueeze(-1)).abs() / 0.5
            return (1 - distance).clamp(min=1e-300).log().flatten(-2)

    spec = Categorical(3)
    atoms = CategoricalQActor(Atoms(), num_atoms=81, value_min=-20, value_max=20, spec=spec)
    actors = [QValueActor(linear, spec=spec), FixedQuantileQActor(repeated, num_quantiles=5, spec=spec), atoms]
    made = [QLearningLoss(actor, delay_value=False) for actor in actors]
    losses = [loss.make_value_estimator(gamma=0.9).double() for loss in made]
    dqn, *distributions = [loss(data.clone())["td_error"] for loss in losses]
    for error in distributions:
        torch.testing.assert_close(error, dqn, rtol=0, atol=1e-10)
