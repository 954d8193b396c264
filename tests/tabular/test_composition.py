"""Soft policy improvement, policy gradients as soft Q-learning, composed policies, and soft Q-iteration over a box."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from torchrl_reg.functional import kl_divergence, policy_entropy, soft_policy
from torchrl_reg.tabular import (
    TabularMDP,
    continuous_soft_q_iteration,
    gauss_legendre,
    policy_evaluation,
    random_mdp,
    soft_composition,
    soft_value_iteration,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: object, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=atol)


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_soft_greedy_step_never_lowers_soft_values(tau: float, seed: int) -> None:
    mdp = random_mdp(6, 4, 0.9, seed=seed)
    pi = (2 * normal(6, 4, seed=seed)).softmax(-1)
    for step in range(6):
        before = policy_evaluation(mdp, pi, tau).q
        pi = soft_policy(before, tau)
        gain = policy_evaluation(mdp, pi, tau).q - before
        assert gain.min() > -1e-10 and (step > 1 or gain.max() > 1e-3)
    for _ in range(40):
        pi = soft_policy(policy_evaluation(mdp, pi, tau).q, tau)
    close(policy_evaluation(mdp, pi, tau).q, soft_value_iteration(mdp, tau).q, 1e-9)


@pytest.mark.parametrize("tau", [0.3, 2.0])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_soft_q_gradient_is_a_policy_gradient_and_a_value_gradient(tau: float, uniform: bool) -> None:
    """Schulman et al. 2017: for actions of pi and any target, the sampling weights not differentiated."""
    q = normal(3, 4).requires_grad_()
    target = normal(3, 4, seed=1)
    log_prior = (
        torch.full((3, 4), -math.log(4), dtype=torch.float64) if uniform else normal(3, 4, seed=2).log_softmax(-1)
    )

    def parts() -> tuple[Tensor, Tensor, Tensor]:
        v = tau * torch.logsumexp(log_prior + q / tau, -1)
        log_pi = log_prior + (q - v.unsqueeze(-1)) / tau
        return v, log_pi, kl_divergence(log_pi, log_prior)

    v, log_pi, _ = parts()
    weights = log_pi.exp().detach()
    (soft_q,) = torch.autograd.grad((weights * 0.5 * (q - target).square()).sum(), q)

    v, log_pi, kl = parts()
    advantage = target - v.detach().unsqueeze(-1) - tau * kl.detach().unsqueeze(-1)
    policy_part = (weights * log_pi * advantage).sum() - tau * kl.sum()
    v_target = (weights * target).sum(-1) - tau * kl.detach()
    value_part = 0.5 * (v - v_target).square().sum()
    (together,) = torch.autograd.grad(-tau * policy_part + value_part, q)
    close(together, soft_q)
    if uniform:  # then the KL is ln 4 minus the entropy
        close(kl, math.log(4) - policy_entropy(log_pi.exp()))


def test_the_soft_policy_gradient_vanishes_at_the_boltzmann_policy() -> None:
    """``E[grad ln pi (Q - tau ln pi)]``: the gradient of ``<pi, Q> + tau H(pi)``."""
    q, tau = normal(3, 4), 0.7
    for logits, zero in ((q / tau, True), (normal(3, 4, seed=1), False)):
        logits = logits.clone().requires_grad_()
        log_pi = logits.log_softmax(-1)
        pi = log_pi.exp().detach()
        score = (pi * log_pi * (q - tau * log_pi.detach())).sum()
        (gradient,) = torch.autograd.grad(score, logits)
        log_pi = logits.log_softmax(-1)
        (expected,) = torch.autograd.grad((log_pi.exp() * (q - tau * log_pi)).sum(), logits)
        close(gradient, expected)
        assert (gradient.abs().max() < 1e-12) == zero


def two_tasks(gamma: float, seed: int, terminal: bool = False) -> tuple[TabularMDP, TabularMDP]:
    mdp = random_mdp(6, 4, gamma, seed=seed)
    ends = torch.arange(6) == 5 if terminal else torch.tensor(False)
    return TabularMDP(mdp.P, mdp.r, gamma, ends), TabularMDP(mdp.P, normal(6, 4, seed=seed), gamma, ends)


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
    same = soft_composition(first, first, 0.7)
    bandit = soft_composition(*two_tasks(0.0, 3), 0.7)
    for c in (same, bandit):
        close(c.value_bound, torch.zeros(6, 4))
        close(c.q_average, c.q_optimal)
        close(c.q_executed, c.q_optimal)


def test_the_sum_is_the_average_at_half_the_temperature() -> None:
    one, two = normal(3, 4), normal(3, 4, seed=1)
    close(soft_policy(one + two, 0.7), soft_policy((one + two) / 2, 0.35))


def test_composition_bad_input() -> None:
    first, _ = two_tasks(0.8, 3)
    for other in (TabularMDP(first.P, first.r, 0.5), TabularMDP(first.P.flip(0), first.r, 0.8)):
        with pytest.raises(ValueError, match="first and second must share P, gamma and terminal"):
            soft_composition(first, other, 1.0)
    with pytest.raises(ValueError, match=r"tau must be > 0, got 0.0"):
        soft_composition(first, first, 0.0)


@pytest.mark.parametrize(("num_points", "dims"), [(1, 1), (4, 1), (5, 2), (3, 3)])
def test_gauss_legendre_integrates_polynomials(num_points: int, dims: int) -> None:
    rule = gauss_legendre(num_points, dims)
    assert rule.nodes.shape == (num_points**dims, dims)
    close(rule.weights.sum(), 2.0**dims)
    for power in range(2 * num_points):
        integral = 0.0 if power % 2 else 2 / (power + 1)
        close(rule.weights @ rule.nodes.pow(power).prod(-1), integral**dims)
    with pytest.raises(ValueError, match="num_points and dims must be >= 1, got 0 and 1"):
        gauss_legendre(0)


def box_mdp(rule, gamma: float) -> TabularMDP:
    """Two states; going to the other one is likelier to the right. The reward is linear, 3 a and -2 a."""
    a = rule.nodes.squeeze(-1)
    leave = 0.5 * (1 + a)
    P = torch.stack((torch.stack((1 - leave, leave), -1), torch.stack((leave, 1 - leave), -1)))
    return TabularMDP(P, torch.stack((3 * a, -2 * a)), gamma)


def test_continuous_soft_q_iteration_of_a_bandit_by_hand() -> None:
    """``V = tau ln(2 tau sinh(3 / tau) / 3)``, and the density of Q = 3 a at tau = 1 has mean coth 3 - 1 / 3 = .672."""
    rule = gauss_legendre(40)
    for tau in (1.0, 0.3):
        best = continuous_soft_q_iteration(box_mdp(rule, 0.0), rule.weights, tau)
        expected = [tau * math.log(2 * tau / c * math.sinh(c / tau)) for c in (3, 2)]
        close(best.v, expected)
    best = continuous_soft_q_iteration(box_mdp(rule, 0.0), rule.weights, 1.0)
    mean = best.pi[0] @ rule.nodes.squeeze(-1)
    close(mean, 1 / math.tanh(3) - 1 / 3)
    assert abs(mean - 0.672) < 5e-4


def test_continuous_soft_q_iteration_contracts_and_does_not_depend_on_the_nodes() -> None:
    values = []
    for points in (20, 40):
        rule = gauss_legendre(points)
        run = continuous_soft_q_iteration(box_mdp(rule, 0.8), rule.weights, 0.5, return_iterates=True)
        values.append(run.v)
        changes = [(b.q - a.q).abs().max() for a, b in zip(run.iterates, run.iterates[1:], strict=False)]
        assert all(after <= 0.8 * before + 1e-12 for before, after in zip(changes, changes[1:], strict=False))
    close(values[0], values[1])
    close(run.q, run.q * 0 + box_mdp(rule, 0.8).backup(run.v))


@pytest.mark.parametrize(
    ("weights", "tau", "message"),
    [
        (torch.ones(3), 1.0, r"weights must be positive of shape \[N\] = \[4\], got"),
        (torch.tensor([1.0, 0.0, 1.0, 1.0]), 1.0, "weights must be positive"),
        (torch.ones(4), 0.0, "tau must be > 0, got 0.0"),
    ],
)
def test_continuous_soft_q_iteration_bad_input(weights: Tensor, tau: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        continuous_soft_q_iteration(box_mdp(gauss_legendre(4), 0.8), weights, tau)
