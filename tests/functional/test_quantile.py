"""Quantile Huber loss: a loop written from the formula."""

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
