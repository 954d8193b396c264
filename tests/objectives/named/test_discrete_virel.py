"""VIREL over discrete actions: its temperature with any head, and its convergence in a table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tabular_cases import all_transitions, table
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.objectives import DiscreteVIRELLoss, HardTargetUpdate
from torchrl_reg.tabular import random_mdp, value_iteration


def loss_of(cases: Any, head: str = "expected", **kwargs: Any) -> Any:
    return type(cases["virel_q"])(DiscreteVIRELLoss, {"tau": 0.5, **kwargs}, head=head).loss()


@pytest.mark.parametrize("head", ["expected", "implicit", "fixed", "atoms"])
def test_any_head(cases: Any, batch: Any, head: str) -> None:
    """And the temperature follows ``c / 2`` of its mean squared TD error, where it is not fixed."""
    loss, data = loss_of(cases, head, beta_scale=0.3, rate=0.25), batch(6)
    out = loss(data)
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters()) and out["tau"] == 0.5
    loss.observe(out)
    expected = 0.75 * 0.5 + 0.25 * 0.15 * out["squared_td_error"].item()
    assert [loss.tau.item(), loss(data)["tau"].item()] == pytest.approx([expected] * 2)
    fixed = loss_of(cases, head)
    for told in (fixed(data), torch.tensor(9.0)):
        fixed.observe(told)
        assert fixed.tau == 0.5


@pytest.mark.parametrize("error", [0.5, torch.tensor([0.5]), {"squared_td_error": torch.tensor(0.5)}], ids=type)
def test_it_follows_numbers_too(error: Any) -> None:
    loss = DiscreteVIRELLoss(QValueActor(nn.Linear(4, 3), spec=Categorical(3)), beta_scale=1.0, rate=1.0)
    loss.observe(error)
    assert float(loss.tau) == 0.25


@pytest.mark.parametrize("name", ["beta_scale", "tau"])
def test_bad_input(cases: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number > 0"):
        loss_of(cases, **{name: 0.0})


def test_in_a_table_the_temperature_anneals_and_the_values_become_optimal() -> None:
    """Exact minimization against the formulas; the temperature follows the error under the policy at the last one."""
    mdp = random_mdp(5, 3, 0.8, seed=3, deterministic=True)
    data = all_transitions(mdp).exclude("priority_weight")
    actor = table(torch.zeros(5, 3))
    settings = {"beta_scale": 0.5, "rate": 1.0, "tau_min": 1e-12, "loss_function": "l2"}
    loss = DiscreteVIRELLoss(actor, **settings).make_value_estimator(gamma=0.8)
    update = HardTargetUpdate(loss, period_updates=1)
    q, tau, taus = torch.zeros(5, 3, dtype=torch.float64), 1.0, []
    for _ in range(70):
        error = mdp.r + 0.8 * mdp.P @ ((q / tau).softmax(-1) * q).sum(-1) - q
        tau = max(0.25 * error.square().mean().item(), 1e-12)
        loss.observe(loss(data))
        assert loss.tau.item() == pytest.approx(tau, rel=1e-9, abs=1e-13)
        q = mdp.r + 0.8 * mdp.P @ ((q / tau).softmax(-1) * q).sum(-1)
        with torch.no_grad():
            next(actor.parameters()).copy_(q.T)
        assert loss(data)["loss"] < 1e-20  # the minimum, the target held fixed
        update.step()
        taus.append(tau)
    assert taus[0] > 0.01 and taus[-1] < 1e-9
    torch.testing.assert_close(q, value_iteration(mdp).q, rtol=0, atol=1e-4)
