"""Importance-sampled soft value, the Stein direction, and the weight and mixture of E2W.

Hand-computed numbers, identities, extremes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchrl_reg.functional import (
    e2w_exploration,
    e2w_policy,
    soft_policy,
    soft_value_importance,
    svgd_bandwidth,
    svgd_direction,
)
from torchrl_reg.functional.sampling import lattice_points


def close(actual: Tensor, expected: object, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=atol)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_soft_value_of_two_samples_by_hand() -> None:
    """Weights e^2 / .25 and e^4 / .5 at tau = .5: V = ln((4 e^2 + 2 e^4) / 2) / 2."""
    q, log_p = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([0.25, 0.5], dtype=torch.float64).log()
    value, ess = soft_value_importance(q, 0.5, log_p)
    w = 4 * math.exp(2), 2 * math.exp(4)
    close(value, 0.5 * math.log((w[0] + w[1]) / 2))
    close(ess, (w[0] + w[1]) ** 2 / (w[0] ** 2 + w[1] ** 2))


# Bias and standard deviation by dimension and number of draws: the docstring's table, whose last column is a lattice.
TABULATED = {
    1: {16: (-0.005, 0.034), 64: (-0.001, 0.016), 1024: (0.0, 0.004), "lattice": (0.0, 0.0)},
    3: {16: (-0.060, 0.129), 64: (-0.013, 0.055), 1024: (0.0, 0.012), "lattice": (-0.053, 0.112)},
    6: {16: (-0.300, 0.277), 64: (-0.124, 0.167), 1024: (-0.012, 0.050), "lattice": (-0.362, 0.279)},
}


def errors(unit: Tensor) -> tuple[Tensor, Tensor]:
    """Of the soft value of ``Q = -|a|^2`` on the box at tau = .1, by points of the unit cube; and the sample sizes."""
    tau, dims = 0.1, unit.shape[-1]
    exact = dims * tau * math.log(math.sqrt(math.pi * tau) * math.erf(1 / math.sqrt(tau)))
    value, ess = soft_value_importance(-(2 * unit - 1).square().sum(-1), tau, -dims * math.log(2))
    return value - exact, ess


@pytest.mark.parametrize("dims", TABULATED)
def test_soft_value_against_the_integral(dims: int) -> None:
    generator, table = torch.Generator().manual_seed(dims), TABULATED[dims]
    shift = torch.rand(5_000, 1, dims, dtype=torch.float64, generator=generator)
    few, _ = errors((lattice_points(8, dims) + shift) % 1)
    assert abs(few.mean() - table["lattice"][0]) < 0.012 and abs(few.std() - table["lattice"][1]) < 0.012
    for count in (16, 64, 1024):
        bias, spread = table[count]
        error, ess = errors(torch.rand(2_000, count, dims, dtype=torch.float64, generator=generator))
        assert abs(error.mean() - bias) < 4 * spread / 2_000**0.5 + 0.001
        assert error.std() == pytest.approx(spread, rel=0.1, abs=0.001)
    assert abs(error.mean() + 0.1 / 2 * (1 / ess - 1 / 1024).mean()) < 0.01


def test_a_lattice_by_hand_and_no_two_points_share_a_coordinate() -> None:
    close(lattice_points(5, 1), [[0.0], [0.2], [0.4], [0.6], [0.8]])
    golden = (math.sqrt(5) - 1) / 2
    close(lattice_points(3, 2), [[0.0, 0.0], [1 / 3, golden], [2 / 3, 2 * golden - 1]])
    points = lattice_points(64, 6)
    assert points.min() >= 0 and points.max() < 1
    assert all(len(column.unique()) == 64 for column in points.T)
    with pytest.raises(ValueError, match="count and dims must be >= 1, got 0 and 2"):
        lattice_points(0, 2)


def test_large_values_and_small_temperatures_stay_finite() -> None:
    q = torch.tensor([1e4, 1e4 - 1, -1e4])
    for tau in (1e-6, 0.0, torch.tensor(0.01)):
        value, ess = soft_value_importance(q, tau, -math.log(2))
        close(value, 1e4, 0.1)
        close(ess, 1.0, 1e-5)


def test_bandwidth_by_hand() -> None:
    """Squared distances 1, 4, 9, 16 between one moving and four fixed particles: the lower median 4 over ln 4.

    Among 0, 1 and 3 they are 1, 4, 9: each pair once, no particle with itself.
    """
    fixed = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    updated = torch.zeros(1, 1, dtype=torch.float64)
    close(svgd_bandwidth(fixed, updated), 4 / math.log(4))
    close(svgd_bandwidth(0 * fixed, updated), 1e-3)
    close(svgd_bandwidth(0 * fixed, updated, smallest=0.5), 0.5)
    close(svgd_bandwidth(torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)), 4 / math.log(3))


def test_direction_is_the_kernel_average_by_autograd() -> None:
    fixed, score, updated = draws(2, 3, 2), draws(2, 3, 2, seed=1), draws(2, 5, 2, seed=2)
    h = torch.tensor([0.7, 1.9], dtype=torch.float64)
    x = fixed.clone().requires_grad_()
    kernel = (-(updated.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1) / h[:, None, None]).exp()
    expected = torch.zeros_like(updated)
    for i in range(5):
        (gradient,) = torch.autograd.grad(kernel[:, i].sum(), x, retain_graph=True)
        expected[:, i] = (kernel[:, i, :, None] * score + gradient).mean(1).detach()
    close(svgd_direction(fixed, score, updated, h), expected)


# -- E2W ------------------------------------------------------------------------------------------------------------


Q = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64)


def test_the_weight_of_e2w_is_that_of_the_formula_once_it_is_a_probability() -> None:
    visits = torch.tensor([0.0, 1.0, 3.0, 4.0, 100.0, 1e6], dtype=torch.float64)
    lam = e2w_exploration(visits, 4, 0.4)
    expected = [1.0, 1.0, 1.0, *(1.6 / math.log(n + 1) for n in (4, 100, 1e6))]  # 1.6 / ln 4 is still more than one
    torch.testing.assert_close(lam, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_policy_of_e2w_is_the_mixture_of_the_visits_of_all_actions() -> None:
    lam = 1.6 / math.log(51)
    pi = (1 - lam) * soft_policy(Q, 0.5) + lam / 4
    for visits in (torch.tensor(50), torch.tensor([20, 5, 24, 1])):
        torch.testing.assert_close(e2w_policy(Q, visits, 0.5, 0.4), pi, rtol=0, atol=1e-12)
    batch = e2w_policy(Q.expand(3, 4), torch.tensor([0, 50, 10**9]), 0.5, 0.4)
    torch.testing.assert_close(batch[:2], torch.stack((torch.full_like(Q, 0.25), pi)), rtol=0, atol=1e-12)
    torch.testing.assert_close(batch.sum(-1), torch.ones(3, dtype=torch.float64))


def test_untried_actions_are_explored_only() -> None:
    q = Q.clone()
    q[1] = -math.inf
    pi = e2w_policy(q, torch.tensor(50), 0.5, 0.4)
    assert pi[1].item() == pytest.approx(0.4 / math.log(51)) and pi.sum().item() == pytest.approx(1)
    nothing = e2w_policy(torch.full((2, 4), -math.inf), torch.tensor([0, 7]), 0.5, 0.4)
    assert torch.equal(nothing, torch.full((2, 4), 0.25))
