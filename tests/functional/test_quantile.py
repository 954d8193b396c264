"""Quantile Huber loss: literal numbers, and a loop written from the formula."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.functional import quantile_huber_loss


def loss_by_loops(z, fractions, z_target, kappa):
    total = 0.0
    for value, fraction in zip(z, fractions, strict=True):
        for target in z_target:
            delta = target - value
            if kappa == 0:
                huber = abs(delta)
            elif abs(delta) <= kappa:
                huber = 0.5 * delta**2 / kappa
            else:
                huber = abs(delta) - 0.5 * kappa
            total += abs(fraction - (delta < 0)) * huber / len(z_target)
    return total


# delta: z = 1 sees 0.5 and -2, z = 3 sees -1.5 and -4; M = 2, sum over both z.
@pytest.mark.parametrize(
    ("kappa", "expected"),
    [
        (2.0, 0.25 * 0.0625 + 0.75 * 1.0 + 0.2 * 0.5625 + 0.2 * 3.0),
        (0.0, 0.25 * 0.5 + 0.75 * 2.0 + 0.2 * 1.5 + 0.2 * 4.0),
    ],
)
def test_literal_numbers(kappa, expected):
    z, fractions = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.25, 0.8]])
    loss = quantile_huber_loss(z, fractions, torch.tensor([[1.5, -1.0]]), kappa)
    torch.testing.assert_close(loss, torch.tensor([expected / 2]))


@pytest.mark.parametrize("kappa", [0.0, 1e-6, 0.3, 1.0, 2.5])
def test_agrees_with_the_formula_at_unequal_counts(kappa):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    fractions = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    z_target = 2 * torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    loss = quantile_huber_loss(z, fractions, z_target, kappa)
    rows = zip(z.reshape(6, 5), fractions.reshape(6, 5), z_target.reshape(6, 7), strict=True)
    expected = [loss_by_loops(*(x.tolist() for x in row), kappa) for row in rows]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64).reshape(2, 3), rtol=1e-12, atol=0)
