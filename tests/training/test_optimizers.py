from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_reg.training.loop.optimizers import make_optimizer

_RATE, _EPS = 0.1, 0.01


def _stepped(name: str, gradients: list[float], **options: float) -> list[float]:
    """A parameter that starts at 0, after each step along ``gradients``."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer(name, [parameter], learning_rate=_RATE, eps=_EPS, **options)
    seen = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        seen.append(parameter.item())
    return seen


def test_adam_and_radam_begin_as_their_papers_say():
    # Bias-corrected moments of the first step are g and g^2; RAdam takes momentum alone while its rho is below 5.
    assert _stepped("adam", [2.0]) == pytest.approx([-_RATE * 2 / (2 + _EPS)])
    assert _stepped("radam", [2.0, 2.0]) == pytest.approx([-_RATE * 2, -2 * _RATE * 2])


def test_rmsprop_is_centered():
    mean, square = 0.25 * 2.0, 0.25 * 4.0
    assert _stepped("rmsprop", [2.0], decay=0.75) == pytest.approx([-_RATE * 2 / ((square - mean**2) ** 0.5 + _EPS)])


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="name must be one of adam, radam, rmsprop, got 'sgd'"):
        _stepped("sgd", [])
