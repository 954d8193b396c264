"""Composed policies and their bounds, and soft Q-iteration over a box of actions."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from torchrl_reg.tabular import (
    TabularMDP,
    continuous_soft_q_iteration,
    gauss_legendre,
    random_mdp,
    soft_composition,
    soft_value_iteration,
)

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-10)


def two_tasks(gamma: float, seed: int, terminal: bool = False) -> tuple[TabularMDP, TabularMDP]:
    mdp = random_mdp(6, 4, gamma, seed=seed)
    ends = torch.arange(6) == 5 if terminal else torch.tensor(False)
    other = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    return TabularMDP(mdp.P, mdp.r, gamma, ends), TabularMDP(mdp.P, other, gamma, ends)


@pytest.mark.parametrize("tau", [0.2, 1.5])
@pytest.mark.parametrize("terminal", [False, True])
def test_composed_values_lie_within_the_bounds(tau: float, terminal: bool) -> None:
    for seed in range(3):
        c = soft_composition(*two_tasks(0.8, seed, terminal), tau)
        slack = 1e-9
        assert (c.q_average >= c.q_optimal - slack).all()
        assert (c.q_optimal >= c.q_average - c.value_bound - slack).all()
        assert (c.q_executed >= c.q_optimal - c.policy_bound - slack).all()
        assert (c.q_executed <= c.q_optimal + slack).all()
        assert c.value_bound.max() > 0.01 and (c.q_average - c.q_optimal).max() > 0.01


def test_the_bounds_are_fixed_points_of_half_a_renyi_divergence() -> None:
    tau = 0.7
    first, second = two_tasks(0.8, 3)
    c = soft_composition(first, second, tau)
    pi_1, pi_2 = (soft_value_iteration(task, tau).pi for task in (first, second))
    delta = -tau * (pi_1 * pi_2).sqrt().sum(-1).log()
    close(c.value_bound, 0.8 * first.P @ (delta + c.value_bound.amax(-1)))
    close(c.policy_bound, 0.8 * first.P @ (c.pi_average * (c.value_bound + c.policy_bound)).sum(-1))


def test_composition_is_exact_for_one_task_twice_and_for_bandits() -> None:
    first, _ = two_tasks(0.8, 3)
    for c in (soft_composition(first, first, 0.7), soft_composition(*two_tasks(0.0, 3), 0.7)):
        close(c.value_bound, torch.zeros_like(first.r))
        close(c.q_average, c.q_optimal)
        close(c.q_executed, c.q_optimal)


@pytest.mark.parametrize(("num_points", "dims"), [(1, 1), (4, 1), (5, 2), (3, 3)])
def test_gauss_legendre_integrates_polynomials(num_points: int, dims: int) -> None:
    rule = gauss_legendre(num_points, dims)
    assert rule.nodes.shape == (num_points**dims, dims)
    for power in range(2 * num_points):
        integral = torch.tensor(0.0 if power % 2 else 2 / (power + 1), dtype=torch.float64)
        close(rule.weights @ rule.nodes.pow(power).prod(-1), integral**dims)


def box_mdp(rule, gamma: float) -> TabularMDP:
    """Two states; going to the other one is likelier to the right. The reward is linear, 3 a and -2 a."""
    a = rule.nodes.squeeze(-1)
    leave = 0.5 * (1 + a)
    P = torch.stack((torch.stack((1 - leave, leave), -1), torch.stack((leave, 1 - leave), -1)))
    return TabularMDP(P, torch.stack((3 * a, -2 * a)), gamma)


def test_continuous_soft_q_iteration_of_a_bandit_by_hand() -> None:
    """``V = tau ln(2 tau sinh(3 / tau) / 3)``, and the density of Q = 3 a at tau = 1 has mean coth 3 - 1 / 3 = .672."""
    rule = gauss_legendre(40)
    for tau in (0.3, 1.0):
        best = continuous_soft_q_iteration(box_mdp(rule, 0.0), rule.weights, tau)
        assert best.v.tolist() == pytest.approx([tau * math.log(2 * tau / c * math.sinh(c / tau)) for c in (3, 2)])
    mean = best.pi[0] @ rule.nodes.squeeze(-1)
    assert mean.item() == pytest.approx(1 / math.tanh(3) - 1 / 3, abs=1e-10)


def test_continuous_soft_q_iteration_does_not_depend_on_the_nodes() -> None:
    few, many = gauss_legendre(20), gauss_legendre(40)
    runs = [continuous_soft_q_iteration(box_mdp(rule, 0.8), rule.weights, 0.5) for rule in (few, many)]
    close(runs[0].v, runs[1].v)
    close(runs[1].q, box_mdp(many, 0.8).backup(runs[1].v))


FIRST = two_tasks(0.8, 3)[0]
BOX = box_mdp(gauss_legendre(4), 0.8)
BAD = [
    (soft_composition, (FIRST, TabularMDP(FIRST.P, FIRST.r, 0.5), 1.0), "first and second must share P, gamma"),
    (soft_composition, (FIRST, TabularMDP(FIRST.P.flip(0), FIRST.r, 0.8), 1.0), "share P, gamma and terminal"),
    (soft_composition, (FIRST, two_tasks(0.8, 3, terminal=True)[0], 1.0), "share P, gamma and terminal"),
    (soft_composition, (FIRST, FIRST, 0.0), "tau must be > 0, got 0.0"),
    (gauss_legendre, (0,), "num_points and dims must be >= 1, got 0 and 1"),
    (continuous_soft_q_iteration, (BOX, torch.ones(3), 1.0), r"weights must be positive of shape \[N\] = \[4\], got"),
    (continuous_soft_q_iteration, (BOX, torch.tensor([1.0, 0.0, 1.0, 1.0]), 1.0), "weights must be positive"),
    (continuous_soft_q_iteration, (BOX, torch.ones(4), 0.0), "tau must be > 0, got 0.0"),
]


@pytest.mark.parametrize(("function", "arguments", "sentence"), BAD)
def test_bad_input(function, arguments: tuple[Tensor, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        function(*arguments)
