"""Optimizers have the settings of the papers; the flat RAdam equals torch's, with and without clipping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from torchrl_reg.lab.learners.optimizers import FlatRAdam, make_optimizer

_RATE, _EPS = 0.1, 0.01


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        # Bias-corrected moments of the first step are g and g^2; RAdam takes momentum alone while its rho is below 5.
        ("adam", 1, -_RATE * 2 / (2 + _EPS)),
        ("radam", 1, -_RATE * 2),
        ("radam", 2, -2 * _RATE * 2),
        ("rmsprop", 1, -_RATE * 2 / ((0.25 * 4 - (0.25 * 2) ** 2) ** 0.5 + _EPS)),  # centered
    ],
)
def test_optimizers_begin_as_their_papers_say(name: str, steps: int, expected: float) -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = make_optimizer(name, [parameter], learning_rate=_RATE, eps=_EPS, decay=0.75)
    parameter.grad = torch.full_like(parameter, 2.0)
    for _ in range(steps):
        optimizer.step()
    assert parameter.item() == pytest.approx(expected)


def test_a_name_that_is_none() -> None:
    with pytest.raises(ValueError, match="name must be one of adam, radam, rmsprop, got 'sgd'"):
        make_optimizer("sgd", [], learning_rate=_RATE, eps=_EPS)


def test_radam_is_torchs_and_resumes_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs, again = ([nn.Parameter(torch.ones(n, 2, dtype=torch.float64)) for n in (3, 1)] for _ in range(3))
    optimizer, reference = FlatRAdam(ours, lr=1e-2), torch.optim.RAdam(theirs, lr=1e-2)
    resumed = FlatRAdam(again, lr=1e-2)

    def step(*pairs: tuple[list[nn.Parameter], torch.optim.Optimizer]) -> None:
        gradients = [torch.randn(each.shape, dtype=torch.float64, generator=generator) for each in ours]
        for parameters, each in pairs:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            each.step()

    for number in range(20):  # the first five without rectification
        for each in (optimizer, reference):
            each.param_groups[0]["lr"] = 1e-2 * (1 - number / 20)
        step((ours, optimizer), (theirs, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-14)
    found, expected = (list(each.state_dict()["state"].values()) for each in (optimizer, reference))
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-16)

    step((again, resumed))  # it has other moments before
    with torch.no_grad():
        torch._foreach_copy_(again, ours)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        step((ours, optimizer), (again, resumed))
    torch.testing.assert_close(ours, again, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "value"), [("weight_decay", 0.1), ("maximize", True)])
def test_what_flat_radam_does_not_have_is_refused(name: str, value: Any) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=rf"{name} must be .* in FlatRAdam .*, got {value}"):
        FlatRAdam([{"params": [parameter], name: value}])
    state = torch.optim.RAdam([parameter], **{name: value}).state_dict()
    with pytest.raises(ValueError, match=f"{name} must be"):
        FlatRAdam([parameter]).load_state_dict(state)


def test_a_clipped_step_is_torchs_clip_and_a_step() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(n, 2, dtype=torch.float64)) for n in (3, 1)] for _ in range(2))
    optimizer, reference = FlatRAdam(ours, lr=1e-2), torch.optim.RAdam(theirs, lr=1e-2)
    for number in range(12):
        gradients = [torch.randn(each.shape, dtype=torch.float64, generator=generator) for each in ours]
        for one, other, gradient in zip(ours, theirs, gradients, strict=True):
            one.grad, other.grad = gradient, gradient.clone()
        most = (0.5, 50.0)[number % 2]  # clipped, and not
        expected = nn.utils.clip_grad_norm_(theirs, most)
        reference.step()
        torch.testing.assert_close(optimizer.clipped_step(most), expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
    ours[0].grad = torch.full_like(ours[0], torch.nan)
    assert optimizer.clipped_step(1.0).isnan() and ours[1].isnan().all()  # as torch's, which scales all by NaN
