"""Munchausen, mirror-descent, implicit-Q and advantage-learning iterations against the theory.

T1 to T5 and E2, E3 are the numbered facts of the project's algorithm notes.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from torchrl_reg.functional import munchausen_bonus
from torchrl_reg.regularizers import PriorKL
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
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)


def gaps(q: torch.Tensor) -> torch.Tensor:
    return q.amax(-1, keepdim=True) - q


@pytest.mark.parametrize("tau", [0.2, 1.5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_munchausen_implicit_q_and_mirror_descent_agree_at_every_iterate(alpha, tau):
    # T1, T5, E2: q'_k = q_k - alpha tau ln pi_k, pi_k the policy of the iterate before, the first one uniform.
    run = {"num_iterations": 60, "return_iterates": True}
    munchausen = munchausen_value_iteration(MDP, tau, alpha, q0=Q0, **run).iterates
    implicit = implicit_q_iteration(MDP, tau, alpha, q0=Q0, **run).iterates
    shifted = Q0 + alpha * tau * math.log(4)
    mirror = mirror_descent_value_iteration(MDP, alpha * tau, (1 - alpha) * tau, q0=shifted, **run).iterates
    for k, iterate in enumerate(munchausen):
        for other in (implicit[k], mirror[k]):
            close(other.pi, iterate.pi, atol=1e-12)
            close(other.v, iterate.v, atol=4e-11)
            close(other.tau_log_pi, iterate.tau_log_pi, atol=4e-11)
        close(implicit[k].q, iterate.q, atol=4e-11)
        if k > 0:
            close(mirror[k].q, iterate.q - alpha * munchausen[k - 1].tau_log_pi, atol=4e-11)


@pytest.mark.parametrize("rho", [[0.1, 0.5, 0.25, 0.15], [0.25] * 4], ids=["prior", "uniform"])
@pytest.mark.parametrize(("alpha", "tau"), [(0.5, 0.5), (0.9, 0.5)])
def test_munchausen_over_a_prior_is_mirror_descent_at_every_iterate(alpha, tau, rho):
    """``argmax <pi, q'> - alpha tau KL(pi || pi_k) - (1 - alpha) tau KL(pi || rho)`` from ``pi_0 = rho``, by hand."""
    kl, rho = PriorKL(tau, prior=rho), torch.tensor(rho, dtype=torch.float64)
    q, mirror, previous = Q0, Q0, rho.expand(6, 4)
    for _ in range(60):
        pi = (mirror / tau + alpha * previous.log() + (1 - alpha) * rho.log()).softmax(-1)
        close(kl.policy(q), pi, atol=1e-10)
        v, tau_log_pi = kl.value_and_log_policy(q)
        q = MDP.backup(v, munchausen_bonus(tau_log_pi, alpha, None))
        from_previous, from_rho = ((pi * (pi / other).log()).sum(-1) for other in (previous, rho))
        mirror = MDP.backup((pi * mirror).sum(-1) - alpha * tau * from_previous - (1 - alpha) * tau * from_rho)
        previous = pi
    if rho.unique().numel() == 1:
        entropy = munchausen_value_iteration(MDP, tau, alpha, q0=Q0, num_iterations=60)
        close(kl.policy(q), entropy.pi, atol=1e-10)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize(("alpha", "tau"), [(0.3, 0.5), (0.5, 1.5), (0.9, 0.2)])
def test_fixed_points(alpha, tau, mdp):
    # T2 to T4: value and policy of soft value iteration at (1 - alpha) tau, and its gaps over 1 - alpha.
    soft = soft_value_iteration(mdp, (1 - alpha) * tau)
    v = soft.v.unsqueeze(-1)
    for solver in (munchausen_value_iteration, implicit_q_iteration):
        solution = solver(mdp, tau, alpha)
        close(solution.v, soft.v)
        close(solution.pi, soft.pi)
        close(solution.q, mdp.mask_q(v + (soft.q - v) / (1 - alpha)), atol=1e-8)
    mirror = mirror_descent_value_iteration(mdp, alpha * tau, (1 - alpha) * tau)
    close(mirror.q, soft.q)
    close(mirror.pi, soft.pi)


def test_limits_of_alpha_and_tau():
    """At alpha = 1 the policy becomes optimal, without an entropy; at tau = 0 it is advantage learning."""
    full = munchausen_value_iteration(MDP, 0.1, 1.0, num_iterations=500)
    close(policy_evaluation(MDP, full.pi).q, value_iteration(MDP).q, atol=1e-10)
    options = {"num_iterations": 30, "q0": Q0}
    expected = advantage_learning(MDP, 0.6, **options).q
    for tau, atol in ((0.0, 0.0), (1e-4, 1e-10)):
        close(munchausen_value_iteration(MDP, tau, 0.6, **options).q, expected, atol=atol)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
def test_advantage_learning_keeps_the_optimum_and_widens_gaps(mdp):
    best, alpha = value_iteration(mdp), 0.6
    plain, persistent = (advantage_learning(mdp, alpha, persistent=persistent) for persistent in (False, True))
    for solution in (plain, persistent):
        close(solution.v, best.v, atol=1e-10)
    close(gaps(plain.q), gaps(best.q) / (1 - alpha))
    assert (gaps(persistent.q) >= gaps(best.q) - 1e-10).all()
    assert (gaps(persistent.q) <= gaps(plain.q) + 1e-10).all()
    assert (gaps(persistent.q) < gaps(plain.q) - 1e-3).any()


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
    close(q, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("alpha", "clip_min"), [(0.9, -1.0), (0.9, -0.3), (0.5, -0.2)])
def test_clipped_gaps_widen_by_at_most_alpha_times_the_clip(alpha, clip_min):
    # E3, exact at temperature 0: gap = gap* + alpha min(gap, |clip_min|).
    clipped, best = munchausen_value_iteration(MDP, 0.0, alpha, clip_min), value_iteration(MDP)
    close(clipped.v, best.v, atol=1e-10)
    extra = gaps(clipped.q) - gaps(best.q)
    close(extra, alpha * gaps(clipped.q).clamp(max=-clip_min), atol=1e-10)
    assert extra.max().item() == pytest.approx(alpha * -clip_min, abs=1e-10)
    # At the published temperature the policy is so sharp that the same number comes out.
    warm = munchausen_value_iteration(MDP, 0.03, alpha, clip_min)
    assert (gaps(warm.q) - gaps(MDP.backup(warm.v))).max().item() == pytest.approx(-alpha * clip_min, abs=1e-6)
