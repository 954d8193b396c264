"""VIREL over discrete actions: its temperature with any head; its equation: test_slots.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.objectives import DiscreteVIRELLoss


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
