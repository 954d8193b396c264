"""Quantile Huber loss: literal numbers, a loop written from the formula, and its minimizer."""

from __future__ import annotations

import math

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


def test_literal_numbers():
    # delta: z = 1 sees 0.5 and -2, z = 3 sees -1.5 and -4; kappa = 2, M = 2, sum over both z:
    # .25 * .0625 + .75 * 1 (online 1), .2 * .5625 + .2 * 3 (online 3), all over M.
    z, fractions = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.25, 0.8]])
    z_target = torch.tensor([[1.5, -1.0]])
    loss = quantile_huber_loss(z, fractions, z_target, 2.0)
    expected = (0.25 * 0.0625 + 0.75 * 1.0 + 0.2 * 0.5625 + 0.2 * 3.0) / 2
    torch.testing.assert_close(loss, torch.tensor([expected]))
    pinball = quantile_huber_loss(z, fractions, z_target, 0.0)
    expected = (0.25 * 0.5 + 0.75 * 2.0 + 0.2 * 1.5 + 0.2 * 4.0) / 2
    torch.testing.assert_close(pinball, torch.tensor([expected]))


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0, 2.5])
def test_agrees_with_the_formula_at_unequal_counts(kappa):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    fractions = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    z_target = 2 * torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    loss = quantile_huber_loss(z, fractions, z_target, kappa)
    assert loss.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            lists = (z[i, j].tolist(), fractions[i, j].tolist(), z_target[i, j].tolist())
            assert loss[i, j].item() == pytest.approx(loss_by_loops(*lists, kappa), rel=1e-12)


def test_small_kappa_tends_to_the_pinball_loss():
    generator = torch.Generator().manual_seed(2)
    z, fractions, z_target = torch.rand(3, 4, 8, generator=generator)
    pinball = quantile_huber_loss(z, fractions, z_target, 0.0)
    torch.testing.assert_close(quantile_huber_loss(z, fractions, z_target, 1e-6), pinball)


def test_pinball_minimizer_is_the_quantile():
    samples = torch.arange(1.0, 101.0).unsqueeze(0)
    candidates = samples.T  # one batch entry for each candidate
    level = torch.full_like(candidates, 0.305)
    losses = quantile_huber_loss(candidates, level, samples.expand(len(candidates), -1), 0.0)
    assert candidates[losses.argmin()].item() == 31.0


def test_scale_law():
    generator = torch.Generator().manual_seed(3)
    z, fractions, z_target = torch.rand(3, 4, 8, generator=generator)
    scaled = quantile_huber_loss(3 * z, fractions, 3 * z_target, 0.6)
    torch.testing.assert_close(scaled, 3 * quantile_huber_loss(z, fractions, z_target, 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    z, fractions, z_target = torch.rand(3, 4, 8, generator=torch.Generator().manual_seed(4))
    halves = [x.to(dtype) for x in (z, fractions, z_target)]
    loss = quantile_huber_loss(*halves, 1.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, quantile_huber_loss(*[x.float() for x in halves], 1.0))


def test_bad_arguments_are_refused():
    z, z_target = torch.zeros(4, 8), torch.zeros(4, 6)
    for kappa in (-1.0, math.nan):
        with pytest.raises(ValueError, match=r"kappa must be >= 0"):
            quantile_huber_loss(z, z, z_target, kappa)
    with pytest.raises(ValueError, match=r"fractions must have the shape of z"):
        quantile_huber_loss(z, z[0], z_target, 1.0)
    with pytest.raises(ValueError, match=r"z_target must have the batch shape of z"):
        quantile_huber_loss(z, z, z_target[:1], 1.0)
