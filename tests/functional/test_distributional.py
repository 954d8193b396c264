"""The projection onto atoms against its definition, and the quantile Huber loss against a loop."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.functional import categorical_projection, quantile_huber_loss

GRID = torch.linspace(-2.0, 3.0, 11, dtype=torch.float64)


def random_atoms(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = 6 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 2.5
    masses = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return values, masses / masses.sum(-1, keepdim=True)


def test_the_projection_is_the_triangle_of_the_definition() -> None:
    values, masses = random_atoms(4, 3, 8)
    near = (values.clamp(-2, 3).unsqueeze(-1) - GRID).abs() / 0.5
    expected = ((1 - near).clamp(min=0) * masses.unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(categorical_projection(values, masses, GRID), expected, rtol=0, atol=1e-14)


def test_atoms_on_the_grid_stay_and_those_outside_go_to_its_ends() -> None:
    masses = torch.softmax(torch.arange(11.0, dtype=torch.float64), 0)
    torch.testing.assert_close(categorical_projection(GRID, masses, GRID), masses, rtol=0, atol=1e-15)
    shifted = torch.cat((torch.zeros(2, dtype=torch.float64), masses[:-3], masses[-3:].sum(0, keepdim=True)))
    torch.testing.assert_close(categorical_projection(GRID + 1.0, masses, GRID), shifted, rtol=0, atol=1e-14)
    far = categorical_projection(torch.tensor([-9.0, 9.0]), torch.tensor([0.25, 0.75]), GRID.float())
    assert far[0] == 0.25 and far[-1] == 0.75


def test_nan_stays_in_its_row() -> None:
    values, masses = random_atoms(3, 4)
    values[1, 2] = torch.nan
    out = categorical_projection(values, masses, GRID)
    assert out[1].isnan().any() and out[[0, 2]].isfinite().all()


def test_values_and_masses_of_two_precisions_meet_in_the_higher() -> None:
    values, support = torch.tensor([[0.2, 1.1]], dtype=torch.float64), torch.linspace(0, 2, 3)
    projected = categorical_projection(values, torch.tensor([[0.25, 0.75]]), support)
    torch.testing.assert_close(projected, torch.tensor([[0.2, 0.725, 0.075]], dtype=torch.float64))


# -- quantile Huber loss --------------------------------------------------------------------------------------------


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
def test_the_quantile_huber_loss_agrees_with_the_formula_at_unequal_counts(kappa):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    fractions = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    z_target = 2 * torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    loss = quantile_huber_loss(z, fractions, z_target, kappa)
    rows = zip(z.reshape(6, 5), fractions.reshape(6, 5), z_target.reshape(6, 7), strict=True)
    expected = [loss_by_loops(*(x.tolist() for x in row), kappa) for row in rows]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64).reshape(2, 3), rtol=1e-12, atol=0)
