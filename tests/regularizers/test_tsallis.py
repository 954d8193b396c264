"""Sparse policies: the projection on the simplex, the limit of the entropy, gradients and NaN."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from torchrl_reg.regularizers import Entropy, Tsallis

TAU = 0.5


def q_values(rows: int) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def quadratic_program(z: Tensor) -> Tensor:
    """The point of the simplex nearest to ``z``, by trying every support: exact."""
    found = []
    for size in range(1, len(z) + 1):
        for support in itertools.combinations(range(len(z)), size):
            point, chosen = torch.zeros_like(z), z[list(support)]
            point[list(support)] = chosen - (chosen.sum() - 1) / size
            if (point >= 0).all():
                found.append(point)
    return min(found, key=lambda point: float((point - z).square().sum()))


def test_sparsemax_is_the_projection_on_the_simplex() -> None:
    q = 2 * q_values(60)
    exact = torch.stack([quadratic_program(row / TAU) for row in q])
    out = Tsallis(TAU)(q)
    torch.testing.assert_close(out.pi, exact, rtol=0, atol=1e-12)
    assert ((out.pi > 0) == (exact > 1e-13)).all()
    assert {1, 2, 3} <= set((exact > 1e-13).sum(-1).tolist())
    near_two = Tsallis(TAU, q=2 + 1e-9)(q)
    torch.testing.assert_close(near_two.pi, out.pi, rtol=0, atol=1e-7)


def test_it_tends_to_the_entropy_and_its_logarithm_is_the_bregman_form() -> None:
    q = q_values(30)
    torch.testing.assert_close(Tsallis(TAU, q=1 + 1e-6)(q).pi, Entropy(TAU)(q).pi, rtol=0, atol=1e-5)
    out = Tsallis(TAU)(q)
    bregman = TAU * (out.pi - 0.5 - out.pi.square().sum(-1, keepdim=True) / 2)
    torch.testing.assert_close(out.tau_log_pi, bregman, rtol=0, atol=1e-13)
    assert (out.tau_log_pi >= -TAU).all()


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
