"""Munchausen, mirror-descent, implicit-Q and advantage-learning iterations against the theory.

T1 to T9 and E1 to E3 are the numbered facts of the project's algorithm notes.
"""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import action_gap
from torchrl_reg.tabular import (
    TabularMDP,
    advantage_learning,
    gridworld,
    implicit_q_iteration,
    mirror_descent_value_iteration,
    munchausen_value_iteration,
    policy_evaluation,
    random_mdp,
    soft_value_iteration,
    value_iteration,
)

MDP = random_mdp(6, 4, 0.9, seed=1)
GRID = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3)
Q0 = 2 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


def gaps(q: torch.Tensor) -> torch.Tensor:
    return q.amax(-1, keepdim=True) - q


def munchausen_and_mirror_descent(alpha, tau, num_iterations=60):
    """Iterates of both from the initial conditions of E2: uniform pi_0, q'_0 = q_0 - a t ln pi_0."""
    options = {"num_iterations": num_iterations, "return_iterates": True}
    munchausen = munchausen_value_iteration(MDP, tau, alpha, q0=Q0, **options)
    shifted = Q0 + alpha * tau * math.log(4)
    mirror = mirror_descent_value_iteration(MDP, alpha * tau, (1 - alpha) * tau, q0=shifted, **options)
    return munchausen.iterates, mirror.iterates


@pytest.mark.parametrize("tau", [0.2, 1.5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_munchausen_is_mirror_descent_at_every_iterate(alpha, tau):
    # T1 / E2: q'_k = q_k - alpha tau ln pi_k, with pi_k the policy of the iterate before.
    munchausen, mirror = munchausen_and_mirror_descent(alpha, tau)
    for k, (one, other) in enumerate(zip(munchausen, mirror, strict=True)):
        close(one.pi, other.pi, 1e-12)
        close(one.v, other.v, 1e-12 * 40)
        close(one.tau_log_pi, other.tau_log_pi, 1e-12 * 40)
        if k > 0:
            close(other.q, one.q - alpha * munchausen[k - 1].tau_log_pi, 1e-12 * 40)


def test_the_printed_change_of_variable_holds_for_alpha_one_only():
    munchausen, mirror = munchausen_and_mirror_descent(0.5, 1.5)
    printed = munchausen[20].q - munchausen[19].tau_log_pi
    assert (printed - mirror[20].q).abs().max() > 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_implicit_q_is_mirror_descent_and_munchausen(alpha):
    # Section 7 T1 and T2, section 5 T5.
    tau = 0.4
    munchausen, mirror = munchausen_and_mirror_descent(alpha, tau)
    options = {"num_iterations": 60, "return_iterates": True}
    implicit = implicit_q_iteration(MDP, tau, alpha, q0=Q0, **options).iterates
    for k, (one, other) in enumerate(zip(implicit, mirror, strict=True)):
        close(one.pi, other.pi, 1e-12)
        close(one.v, other.v, 2e-11)
        close(munchausen[k].q, one.tau_log_pi + one.v.unsqueeze(-1), 2e-11)
        if k > 0:
            target = MDP.backup(implicit[k - 1].v, alpha * implicit[k - 1].tau_log_pi)
            close(one.v, tau * torch.logsumexp(target / tau, -1), 1e-12 * 40)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize(("alpha", "tau"), [(0.3, 0.5), (0.5, 1.5), (0.9, 0.2)])
def test_fixed_points(alpha, tau, mdp):
    # T3, T4 and section 7 T3: value and policy of soft value iteration at (1 - alpha) tau.
    soft = soft_value_iteration(mdp, (1 - alpha) * tau)
    for solver in (munchausen_value_iteration, implicit_q_iteration):
        solution = solver(mdp, tau, alpha)
        close(solution.v, soft.v, 1e-9)
        close(solution.pi, soft.pi, 1e-9)
        stretched = soft.v.unsqueeze(-1) + (soft.q - soft.v.unsqueeze(-1)) / (1 - alpha)
        close(solution.q, mdp.mask_q(stretched), 1e-8)
    mirror = mirror_descent_value_iteration(mdp, alpha * tau, (1 - alpha) * tau)
    close(mirror.q, soft.q, 1e-9)
    close(mirror.pi, soft.pi, 1e-9)


def test_implicit_q_without_alpha_is_soft_value_iteration():
    soft = soft_value_iteration(MDP, 0.4, q0=Q0, num_iterations=20)
    implicit = implicit_q_iteration(MDP, 0.4, q0=Q0, num_iterations=20)
    close(implicit.q, soft.q, 1e-12)
    close(implicit.pi, soft.pi, 1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
def test_action_gaps_grow_by_one_over_one_minus_alpha(alpha):
    # T2 / E1; the published (1 + alpha) / (1 - alpha) would be 1.857, 3 and 19.
    tau = 0.5
    ratio = (
        gaps(munchausen_value_iteration(MDP, tau, alpha).q) / gaps(soft_value_iteration(MDP, (1 - alpha) * tau).q)
    ).nan_to_num(1 / (1 - alpha))  # 0 / 0 at the best action
    close(ratio, torch.full_like(ratio, 1 / (1 - alpha)), 1e-6)


def test_zero_temperature_is_advantage_learning():
    options = {"num_iterations": 30, "q0": Q0}
    expected = advantage_learning(MDP, 0.6, **options).q
    errors = [
        (munchausen_value_iteration(MDP, tau, 0.6, **options).q - expected).abs().max().item()
        for tau in (0.1, 0.01, 0.001, 0.0001, 0.0)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1e-3
    assert errors[3] < 1e-10 and errors[4] == 0.0


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
def test_advantage_learning_keeps_the_optimum_and_widens_gaps(mdp):
    best, alpha = value_iteration(mdp), 0.6
    plain = advantage_learning(mdp, alpha)
    close(plain.v, best.v, 1e-10)
    close(gaps(plain.q), gaps(best.q) / (1 - alpha), 1e-9)
    persistent = advantage_learning(mdp, alpha, persistent=True)
    close(persistent.v, best.v, 1e-10)
    assert (gaps(persistent.q) >= gaps(best.q) - 1e-10).all()
    assert (gaps(persistent.q) <= gaps(plain.q) + 1e-10).all()
    assert (gaps(persistent.q) < gaps(plain.q) - 1e-3).any()
    close(advantage_learning(mdp, 0.0).q, best.q, 1e-10)


def test_persistent_update_by_hand():
    # From s0, action 0 stays, action 1 ends or goes to s1 with probability 1/2 each.
    P = torch.zeros(3, 2, 3)
    P[0, 0, 0] = 1.0
    P[0, 1, 1:] = 0.5
    P[1:, :, 2] = 1.0
    mdp = TabularMDP(P, torch.zeros(3, 2), 0.5, torch.tensor([False, False, True]))
    q0 = torch.tensor([[3.0, 1.0], [5.0, 4.5], [0.0, 0.0]])
    q = advantage_learning(mdp, 0.8, persistent=True, q0=q0, num_iterations=1).q
    # Gaps (0, 2) at s0 and (0, 0.5) at s1; the next state of s1 is terminal, so its own gap counts.
    expected = [[0.5 * 3.0, 0.25 * 5.0 - 0.8 * (0.5 * 0.5 + 0.5 * 2.0)], [0.0, -0.8 * 0.5], [0, 0]]
    close(q, torch.tensor(expected, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize(("alpha", "clip_min"), [(0.9, -1.0), (0.9, -0.3), (0.5, -0.2)])
def test_clipped_gaps_widen_by_at_most_alpha_times_the_clip(alpha, clip_min):
    # E3, exact at temperature 0: gap = gap* + alpha min(gap, |clip_min|).
    clipped, best = munchausen_value_iteration(MDP, 0.0, alpha, clip_min), value_iteration(MDP)
    close(clipped.v, best.v, 1e-10)
    extra = gaps(clipped.q) - gaps(best.q)
    close(extra, alpha * gaps(clipped.q).clamp(max=-clip_min), 1e-10)
    assert extra.max().item() == pytest.approx(alpha * -clip_min, abs=1e-10)
    # At the published temperature the policy is so sharp that the same number comes out.
    warm = munchausen_value_iteration(MDP, 0.03, alpha, clip_min)
    unshaped = MDP.backup(warm.v)
    assert (gaps(warm.q) - gaps(unshaped)).max().item() == pytest.approx(-alpha * clip_min, abs=1e-6)
    # The ratio law is gone.
    ratio = gaps(clipped.q).amax() / gaps(best.q).amax()
    assert ratio < 0.9 / (1 - alpha)


def test_munchausen_averages_errors_out_and_value_iteration_does_not():
    # T6: i.i.d. N(0, 1) errors in every update; distance of the policy's value to the optimum.
    def distances(solver, seed, num_iterations):
        mdp = random_mdp(6, 4, 0.9, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        solution = solver(
            mdp,
            num_iterations=num_iterations,
            noise=lambda k: torch.randn(6, 4, dtype=torch.float64, generator=generator),
            return_iterates=True,
        )
        best = value_iteration(mdp).q
        marks = [round(num_iterations * share) for share in (0.6, 0.7, 0.8, 0.9, 1.0)]
        policies = [solution.iterates[k].pi for k in marks]
        return [(best - policy_evaluation(mdp, pi).q).abs().max().item() for pi in policies]

    def full_munchausen(mdp, **options):
        return munchausen_value_iteration(mdp, 0.1, 1.0, **options)

    seeds = range(3)
    averaged = [max(distances(full_munchausen, seed, 2500)) for seed in seeds]
    plain = [max(distances(value_iteration, seed, 300)) for seed in seeds]
    assert max(averaged) < 0.1 and min(plain) > 1.0, (averaged, plain)


@pytest.mark.parametrize("num_iterations", [5, 50, 500])
def test_full_munchausen_converges_at_the_proven_rate(num_iterations):
    # T6 without errors: ||q* - q_pi_k|| <= 4 / (1 - gamma)^2 (r_max + tau ln A) / k.
    tau, k = 0.1, num_iterations
    solution = munchausen_value_iteration(MDP, tau, 1.0, num_iterations=k)
    error = (value_iteration(MDP).q - policy_evaluation(MDP, solution.pi).q).abs().max()
    bound = 4 / (1 - 0.9) ** 2 * (MDP.r.abs().max() + tau * math.log(4)) / k
    assert error <= bound
    if k == 500:
        assert error < 1e-10
        # Gaps never stop growing: alpha = 1 has no fixed point in q.
        longer = munchausen_value_iteration(MDP, tau, 1.0, num_iterations=2 * k)
        assert (action_gap(longer.q) > 1.5 * action_gap(solution.q)).all()
