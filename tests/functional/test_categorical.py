"""The projection on a grid of atoms."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.functional import categorical_projection

GRID = torch.linspace(-2.0, 3.0, 11, dtype=torch.float64)


def random(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = 6 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 2.5
    masses = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return values, masses / masses.sum(-1, keepdim=True)


def test_it_is_the_triangle_of_the_definition() -> None:
    values, masses = random(4, 3, 8)
    near = (values.clamp(-2, 3).unsqueeze(-1) - GRID).abs() / 0.5
    expected = ((1 - near).clamp(min=0) * masses.unsqueeze(-1)).sum(-2)
    torch.testing.assert_close(categorical_projection(values, masses, GRID), expected, rtol=0, atol=1e-14)


def test_mass_and_mean_are_kept_and_the_variance_grows_by_its_law() -> None:
    values, masses = random(50, 6)
    values = values.clamp(-2, 3)
    out = categorical_projection(values, masses, GRID)
    torch.testing.assert_close(out.sum(-1), torch.ones(50, dtype=torch.float64))
    mean = (values * masses).sum(-1)
    torch.testing.assert_close((out * GRID).sum(-1), mean, rtol=0, atol=1e-13)
    place = (values + 2) / 0.5
    fraction = place - place.floor()
    grown = 0.25 * (masses * fraction * (1 - fraction)).sum(-1)
    variance = (masses * values.square()).sum(-1) - mean.square()
    torch.testing.assert_close((out * GRID.square()).sum(-1) - mean.square(), variance + grown, rtol=0, atol=1e-12)


def test_atoms_on_the_grid_stay_and_those_outside_go_to_its_ends() -> None:
    masses = torch.softmax(torch.arange(11.0, dtype=torch.float64), 0)
    torch.testing.assert_close(categorical_projection(GRID, masses, GRID), masses, rtol=0, atol=1e-15)
    shifted = categorical_projection(GRID + 1.0, masses, GRID)
    torch.testing.assert_close(shifted[2:-1], masses[:-3], rtol=0, atol=1e-14)
    torch.testing.assert_close(shifted[-1], masses[-3:].sum(), rtol=0, atol=1e-14)
    far = categorical_projection(torch.tensor([-9.0, 9.0]), torch.tensor([0.25, 0.75]), GRID.float())
    assert far[0] == 0.25 and far[-1] == 0.75


def test_nan_stays_in_its_row_and_half_precision_is_float32() -> None:
    values, masses = random(3, 4)
    values[1, 2] = torch.nan
    out = categorical_projection(values, masses, GRID)
    assert out[1].isnan().any() and out[[0, 2]].isfinite().all()
    assert categorical_projection(values.half(), masses.half(), GRID).dtype == torch.float32


def test_bad_shapes() -> None:
    values, masses = random(3, 4)
    with pytest.raises(ValueError, match="masses must have the shape of values"):
        categorical_projection(values, masses[:2], GRID)
    with pytest.raises(ValueError, match="support must be a grid"):
        categorical_projection(values, masses, GRID[:1])


def test_values_and_masses_of_two_precisions_meet_in_the_higher() -> None:
    values, support = torch.tensor([[0.2, 1.1]], dtype=torch.float64), torch.linspace(0, 2, 3)
    projected = categorical_projection(values, torch.tensor([[0.25, 0.75]]), support)
    torch.testing.assert_close(projected, torch.tensor([[0.2, 0.725, 0.075]], dtype=torch.float64))
