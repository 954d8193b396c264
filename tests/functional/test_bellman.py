"""The Bellman error as a temperature, by hand."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.functional import bellman_temperature

DELTA = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def test_bellman_temperature_by_hand() -> None:
    some, none = torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.bool)
    found = [
        bellman_temperature(DELTA, 0.3),
        bellman_temperature(DELTA, 0.3, exponent=1),
        bellman_temperature(DELTA, 0.3, exponent=3),
        bellman_temperature(DELTA, 0.3, weights=some),
        bellman_temperature(DELTA, 0.3, weights=none),
    ]
    expected = torch.tensor([0.15 * 14 / 3, 0.3 * 2, 0.1 * 12, 0.15 * 2.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-12)


def test_an_error_of_weight_0_may_be_nan_and_gets_no_gradient() -> None:
    weights = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    delta = (DELTA / torch.tensor([1, 1, 0]) * torch.tensor([1, 1, 0])).requires_grad_()
    temperature = bellman_temperature(delta, 0.3, weights=weights)
    temperature.backward()
    found = torch.cat((temperature.detach().reshape(1), delta.grad))  # type: ignore[arg-type]
    expected = 0.3 / 0.75 * torch.tensor([0.75, 0.5, -0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("exponent", [0.5, float("nan")])
def test_bad_exponents(exponent: float) -> None:
    with pytest.raises(ValueError, match=f"exponent must be a finite number >= 1, got {exponent}"):
        bellman_temperature(DELTA, 1.0, exponent=exponent)
