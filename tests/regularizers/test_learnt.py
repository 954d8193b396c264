"""Coefficients learnt by dual ascent, or following the Bellman error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from torchrl_reg.regularizers import BellmanErrorCoefficient, Coefficient, DualCoefficient, Entropy


@pytest.mark.parametrize(("rises", "sign"), [("above", -1.0), ("below", 1.0)])
def test_it_rises_on_its_side_of_the_target_and_the_statistic_gets_no_gradient(rises: str, sign: float) -> None:
    """Of a KL budget (its weight) above, of an entropy target (a temperature) below."""
    weight = DualCoefficient(0.5, target=0.7, rises=rises)
    statistic = torch.tensor([0.3, 1.5], requires_grad=True)
    weight.objective(statistic).sum().backward()
    torch.testing.assert_close(weight.log_value.grad, torch.tensor(sign * 0.4))
    assert statistic.grad is None and not weight.value.requires_grad


def test_a_learnt_one_is_assigned_saved_and_copied_too() -> None:
    tau, other = (DualCoefficient(value, target=0.7, rises="below") for value in (1.0, 3.0))
    tau.assign(0.25)
    other.load_state_dict(tau.state_dict())
    twin = copy.deepcopy(tau)
    twin.assign(5.0)
    torch.testing.assert_close(torch.stack((tau.value, other.value)), torch.full((2,), 0.25))
    entropy = Entropy(tau)
    entropy.tau = 0.5
    assert tau.value == 0.5 and list(entropy.parameters()) == [tau.log_value]


@pytest.mark.parametrize(
    ("settings", "start", "seen", "expected"),
    [
        ({"rate": 0.25, "scale": 0.5}, 1.0, [0.5], 0.75 + 0.25 * 0.25),
        ({"rate": 0.25, "scale": 0.5, "inverse": True}, 1.0, [0.5], 0.75 + 0.25 * 1.0),
        ({"rate": 0.25, "inverse": True}, 2.0, [0.2], 0.75 * 2 + 0.25 * 5),
        ({"rate": 1.0}, 1.0, [0.7, 0.5], 0.5),
        ({"rate": 1.0, "low": 0.5, "high": 2.0}, 1.0, [100.0], 2.0),
        ({"rate": 1.0, "low": 0.5, "high": 2.0}, 1.0, [0.001], 0.5),
        *(({"rate": 0.25, "inverse": True, "error_floor": 0.01}, 1.0, [x], 0.75 + 25) for x in (0.0, 0.001, 0.01)),
        ({"rate": 0.5, "inverse": True}, 2.0, [torch.nan, torch.inf], 2.0),
    ],
)
def test_the_bellman_error_is_followed(settings: Any, start: float, seen: list[float], expected: float) -> None:
    followed = BellmanErrorCoefficient(start, **settings)
    for error in seen:
        followed.observe(torch.tensor(error, dtype=torch.float64))
    assert float(followed.value) == pytest.approx(expected, rel=1e-12)


def test_a_fixed_one_follows_nothing() -> None:
    fixed, error = Coefficient(0.5), torch.tensor(0.3)
    assert fixed.observe(error) is None and fixed.objective(error) is None and float(fixed.value) == 0.5


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DualCoefficient(1.0, target=0.5, rises="up"), "rises must be 'above' or 'below', got 'up'"),
        (lambda: DualCoefficient(1.0, target=float("nan"), rises="above"), "target must be a finite number"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.1, low=0.0), "low <= high"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.1, low=2.0, high=1.0), "low <= high"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.1, error_floor=0.0), "error_floor"),
        (lambda: BellmanErrorCoefficient(1.0, rate=0.0), r"rate must be in \(0, 1\], got"),
    ],
)
def test_bad_arguments(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
