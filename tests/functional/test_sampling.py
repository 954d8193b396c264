"""Importance-sampled soft value and the Stein direction: numbers by hand, identities, extremes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchrl_reg.functional import (
    bellman_temperature,
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


def test_equal_values_under_a_uniform_proposal_give_the_volume_of_the_box() -> None:
    """V = q + tau ln 2^D however few the samples, and all of them count."""
    value, ess = soft_value_importance(torch.full((2, 5), 3.0), 0.7, -4 * math.log(2))
    close(value, [3 + 0.7 * 4 * math.log(2)] * 2, 1e-6)
    close(ess, [5.0] * 2, 1e-5)


# Bias and standard deviation in 1 to 6 dimensions, by the number of independent draws: the docstring's table.
TABULATED = {
    16: [(-0.005, 0.034), (-0.020, 0.073), (-0.060, 0.129), (-0.121, 0.185), (-0.206, 0.235), (-0.300, 0.277)],
    64: [(-0.001, 0.016), (-0.004, 0.031), (-0.013, 0.055), (-0.033, 0.088), (-0.071, 0.129), (-0.124, 0.167)],
    1024: [(0.0, 0.004), (0.0, 0.007), (0.0, 0.012), (-0.002, 0.020), (-0.005, 0.032), (-0.012, 0.050)],
}


@pytest.mark.parametrize("dims", range(1, 7))
def test_soft_value_against_the_integral(dims: int) -> None:
    """``Q = -|a|^2`` on the box, at tau = .1: the table in the docstring."""
    tau = 0.1
    exact = dims * tau * math.log(math.sqrt(math.pi * tau) * math.erf(1 / math.sqrt(tau)))
    generator = torch.Generator().manual_seed(dims)
    estimates = {}
    for count in (16, 64, 1024):
        actions = 2 * torch.rand(2_000, count, dims, dtype=torch.float64, generator=generator) - 1
        estimates[count], ess = soft_value_importance(-actions.square().sum(-1), tau, -dims * math.log(2))
    for count, column in TABULATED.items():
        bias, spread = column[dims - 1]
        error = estimates[count] - exact
        assert abs(error.mean() - bias) < 4 * spread / 2_000**0.5 + 0.001
        assert error.std() == pytest.approx(spread, rel=0.1, abs=0.001)
    many = estimates[1024] - exact
    assert abs(many.mean() + tau / 2 * (1 / ess - 1 / 1024).mean()) < 0.01


@pytest.mark.parametrize("dims", range(1, 7))
def test_eight_points_of_a_lattice_against_the_integral(dims: int) -> None:
    """The last column of the table; in up to three dimensions no worse than 16 independent draws."""
    tau, tabulated = 0.1, [(0.0, 0.0), (-0.003, 0.026), (-0.053, 0.112), (-0.155, 0.197), (-0.246, 0.233)]
    bias, spread = [*tabulated, (-0.362, 0.279)][dims - 1]
    exact = dims * tau * math.log(math.sqrt(math.pi * tau) * math.erf(1 / math.sqrt(tau)))
    shift = torch.rand(5_000, 1, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(dims))
    actions = 2 * ((lattice_points(8, dims) + shift) % 1) - 1
    few = soft_value_importance(-actions.square().sum(-1), tau, -dims * math.log(2))[0] - exact
    assert abs(few.mean() - bias) < 0.012 and abs(few.std() - spread) < 0.012


def test_a_lattice_by_hand_and_no_two_points_share_a_coordinate() -> None:
    close(lattice_points(5, 1), [[0.0], [0.2], [0.4], [0.6], [0.8]])
    golden = (math.sqrt(5) - 1) / 2
    close(lattice_points(3, 2), [[0.0, 0.0], [1 / 3, golden], [2 / 3, 2 * golden - 1]])
    points = lattice_points(64, 6)
    assert points.min() >= 0 and points.max() < 1
    assert all(len(column.unique()) == 64 for column in points.T)
    with pytest.raises(ValueError, match="count and dims must be >= 1, got 0 and 2"):
        lattice_points(0, 2)


def test_the_density_itself_as_proposal_has_no_error() -> None:
    """Samples of any origin, weighted by 1 / p with p the Boltzmann density: each is worth the integral."""
    q, tau, log_integral = draws(4, 6), 0.3, 1.7
    value, ess = soft_value_importance(q, tau, q / tau - log_integral)
    close(value, [tau * log_integral] * 4)
    close(ess, [6.0] * 4)


def test_large_values_and_small_temperatures_stay_finite() -> None:
    q = torch.tensor([1e4, 1e4 - 1, -1e4])
    for tau in (1e-6, 0.0, torch.tensor(0.01)):
        value, ess = soft_value_importance(q, tau, -math.log(2))
        close(value, 1e4, 0.1)
        close(ess, 1.0, 1e-5)
    with pytest.raises(ValueError, match="tau must be a finite temperature >= 0, got -1"):
        soft_value_importance(q, -1.0, 0.0)


def test_bandwidth_by_hand() -> None:
    """Squared distances 1, 4, 9, 16 between one moving and four fixed particles: the lower median 4 over ln 4."""
    fixed = torch.tensor([[1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    updated = torch.zeros(1, 1, dtype=torch.float64)
    close(svgd_bandwidth(fixed, updated), 4 / math.log(4))
    close(svgd_bandwidth(0 * fixed, updated), 1e-3)
    close(svgd_bandwidth(0 * fixed, updated, smallest=0.5), 0.5)


def test_bandwidth_among_the_particles_by_hand() -> None:
    """0, 1 and 3: squared distances 1, 4, 9, the median 4 over ln 3; each pair once, no particle with itself."""
    close(svgd_bandwidth(torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)), 4 / math.log(3))


def test_with_a_bandwidth_of_its_own_two_particles_push_without_bias() -> None:
    """Drawn from the density, the mean of y times the direction at y is 0; with both in the bandwidth it is not."""
    fixed, moving = draws(100_000, 2, 1), draws(100_000, 2, 1, seed=1)
    biased, unbiased = (
        (moving * svgd_direction(fixed, -fixed, moving, h)).mean(-2)
        for h in (svgd_bandwidth(fixed, moving), svgd_bandwidth(moving))
    )
    assert abs(unbiased.mean()) < 4 * unbiased.std() / 100_000**0.5 < 0.01
    assert biased.mean() > 0.05


def test_direction_by_hand() -> None:
    """Fixed at 0 and 2, moving at 1, h = 2, scores 3 and -1: (3 - 1) e^-.5 / 2, for the two push equally."""
    fixed, score = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [-1.0]])
    h, kernel = torch.tensor(2.0), math.exp(-0.5)
    close(svgd_direction(fixed, score, torch.tensor([[1.0]]), h), [[kernel]], 1e-6)
    # At 1.5 the particle at 2 pushes harder, to the left: kernel gradients 2 (y - x) / h * k.
    near, far = math.exp(-0.125), math.exp(-1.125)
    expected = (3 * far - near + 1.5 * far - 0.5 * near) / 2
    close(svgd_direction(fixed, score, torch.tensor([[1.5]]), h), [[expected]], 1e-6)


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


def test_repulsion_alone_is_antisymmetric() -> None:
    """Without a density the particles push one another apart, with no net force."""
    particles = draws(6, 3)
    apart = svgd_direction(particles, torch.zeros_like(particles), particles, torch.tensor(2.0))
    close(apart.sum(0), [0.0] * 3)
    assert (apart * (particles - particles.mean(0))).sum() > 0


def test_flowing_along_the_direction_samples_the_density() -> None:
    """100 particles of a normal with mean 1 and variance 1/4."""
    particles = draws(100, 1)
    for _ in range(1000):
        score = -(particles - 1) / 0.25
        step = svgd_direction(particles, score, particles, svgd_bandwidth(particles, particles))
        particles = particles + 0.2 * step
    assert abs(particles.mean() - 1) < 0.01 and abs(particles.std() - 0.5) < 0.03


def test_particles_spread_within_separate_modes_but_do_not_cross() -> None:
    """30 and 10 particles at normals of standard deviation .15 around -1 and 1, of equal mass: they stay 30 and 10."""
    modes = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    particles = modes.repeat_interleave(torch.tensor([30, 10])).unsqueeze(-1) + 0.01 * draws(40, 1)
    for _ in range(2000):
        apart = particles - modes
        score = -((-apart.square() / 0.045).softmax(-1) * apart).sum(-1, keepdim=True) / 0.0225
        particles = particles + 0.02 * svgd_direction(particles, score, particles, svgd_bandwidth(particles))
    left, right = particles[:30], particles[30:]
    assert left.max() < 0 < right.min()
    assert abs(left.mean() + 1) < 0.01 and abs(left.std() - 0.15) < 0.01


@pytest.mark.parametrize("call", [lambda x: svgd_bandwidth(x, x), lambda x: svgd_direction(x, x, x, torch.ones(2))])
def test_one_particle_is_refused(call) -> None:
    with pytest.raises(ValueError, match=r"fixed must hold at least 2 particles .* got shape \(2, 1, 3\)"):
        call(torch.zeros(2, 1, 3))


def test_scores_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"score must have the shape of fixed \(4, 2\), got \(4, 1\)"):
        svgd_direction(torch.zeros(4, 2), torch.zeros(4, 1), torch.zeros(3, 2), torch.tensor(1.0))


def test_bellman_temperature_by_hand() -> None:
    delta = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    close(bellman_temperature(delta, 0.3), 0.15 * 14 / 3)
    close(bellman_temperature(delta, 0.3, exponent=1), 0.3 * 2)
    close(bellman_temperature(delta, 0.3, weights=torch.tensor([True, True, False])), 0.15 * 2.5)
    close(bellman_temperature(delta, 0.3, weights=torch.zeros(3, dtype=torch.bool)), 0.0)
    weights = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    close(bellman_temperature(delta / torch.tensor([1, 1, 0]), 0.3, weights=weights), 0.15 * 1.5 / 0.75)
    assert bellman_temperature(delta.half(), 0.3).dtype == torch.float32


def test_an_error_of_weight_0_may_be_nan_and_gets_no_gradient() -> None:
    delta = torch.tensor([1.0, -2.0, torch.nan], dtype=torch.float64, requires_grad=True)
    temperature = bellman_temperature(delta, 0.3, weights=torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64))
    close(temperature, 0.15 * 1.5 / 0.75)
    temperature.backward()
    close(delta.grad, 0.3 / 0.75 * torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_bellman_temperature_of_scaled_rewards(exponent: float) -> None:
    """k times the rewards: k^p times the temperature, so k times with c / k^(p - 1)."""
    delta, k = draws(10), 7.0
    first = bellman_temperature(delta, 0.3, exponent=exponent)
    close(bellman_temperature(k * delta, 0.3, exponent=exponent), k**exponent * first, 1e-9)
    close(bellman_temperature(k * delta, 0.3 / k ** (exponent - 1), exponent=exponent), k * first, 1e-9)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"scale": math.inf}, "scale must be a finite number > 0, got inf"),
        ({"scale": 1.0, "exponent": 0.5}, "exponent must be a finite number >= 1, got 0.5"),
    ],
)
def test_bellman_temperature_bad_input(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bellman_temperature(torch.ones(3), **kwargs)
