"""Sparse policies: refused indices, gradients and NaN; the projection itself: tests/tabular/test_tsallis.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchrl_reg.regularizers import Tsallis

TAU = 0.5


def q_values(rows: int) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("q", [1.0, 0.5, float("nan")])
def test_bad_indices(q: float) -> None:
    with pytest.raises(ValueError, match="q must be"):
        Tsallis(0.5, q=q)


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_the_gradient_of_a_sparse_value_is_its_policy(q: float) -> None:
    x = torch.tensor([1.0, 1.02, 3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(Tsallis(0.1, q=q)(x).value, x)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("q", [1.5, 2.0, 3.0])
def test_nan_stays_in_its_row_of_a_sparse_policy(q: float) -> None:
    x = q_values(4)
    expected = Tsallis(TAU, q=q)(x)
    x[1, 2] = x[2] = torch.nan
    out = Tsallis(TAU, q=q)(x)
    for part, whole in zip(out, expected, strict=True):
        torch.testing.assert_close(part[[0, 3]], whole[[0, 3]], rtol=0, atol=0)
    assert out.value[1:3].isnan().all() and out.pi[1:3].isnan().any(-1).all()
