"""Losses that coincide: with a uniform prior, and for deterministic returns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor
from torchrl_reg.objectives import QLearningLoss


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
