"""Distances told from losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from torchrl_reg.testing.distances import fitted

ERROR = torch.linspace(-3, 2, 30, dtype=torch.float64)
LOSSES: dict[str, Any] = {
    "squared": lambda d: 0.5 * d.square(),
    "huber": lambda d: F.smooth_l1_loss(d, 0 * d, reduction="none"),
    "huber-0.3": lambda d: 5 * F.huber_loss(d, 0 * d, reduction="none", delta=0.3),
    "huber-beta": lambda d: F.smooth_l1_loss(d, 0 * d, reduction="none", beta=2.0),
    "absolute": lambda d: 2 * d.abs(),
    "log cosh": lambda d: d.cosh().log(),
    "clipped": lambda d: d.clamp(-1, 1).square(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_is_known_by_its_values(name: str) -> None:
    error = ERROR.clone().requires_grad_()
    loss = LOSSES[name](error)
    (slope,) = torch.autograd.grad(loss.sum(), error)
    found = fitted(ERROR, loss.detach(), slope, 1e-6)
    assert found is not None and found.name == name.split("-")[0]
    torch.testing.assert_close(found(ERROR), loss.detach())
    assert fitted(ERROR + 0.01, loss.detach(), slope, 1e-6) is None


def test_others_are_not() -> None:
    assert fitted(ERROR, ERROR.abs() ** 1.5, ERROR, 1e-6) is None
    assert fitted(ERROR, 0 * ERROR, 0 * ERROR, 1e-6) is None
