"""The exact solvers: common properties, hand-computed or theoretical values, and agreement with each other."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from torchrl_reg.functional import munchausen_bonus
from torchrl_reg.regularizers import PriorKL, Tsallis
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
    tsallis_value_iteration,
    value_iteration,
)

SOLVERS = {
    "value": value_iteration,
    "soft": partial(soft_value_iteration, tau=0.3),
    "tsallis": partial(tsallis_value_iteration, tau=0.3, index=1.5),
    "munchausen": partial(munchausen_value_iteration, tau=0.3, alpha=0.6, clip_min=-0.4),
    "mirror descent": partial(mirror_descent_value_iteration, lam=0.2, tau=0.1),
    "advantage": partial(advantage_learning, alpha=0.6),
    "persistent": partial(advantage_learning, alpha=0.6, persistent=True),
    "implicit": partial(implicit_q_iteration, tau=0.3, alpha=0.6),
}
MDP = random_mdp(6, 4, 0.9, seed=1)
GRID = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3)
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_converges_to_a_fixed_point_from_anywhere(solver, mdp):
    solution = solver(mdp)
    assert solution.residual <= 1e-12 * max(1.0, solution.q.abs().max().item()) and solution.iterates == ()
    again = solver(mdp, q0=5 * torch.randn(mdp.r.shape, generator=torch.Generator().manual_seed(0)))
    close(again.q, solution.q)
    close(again.v, solution.v)
    close((again.pi * solution.q).sum(-1), (solution.pi * solution.q).sum(-1))
    if mdp is MDP:  # the grid is symmetric: actions that tie share a greedy policy only where they tie to the last bit
        close(again.pi, solution.pi)
    close(solution.pi.sum(-1), torch.ones(mdp.num_states, dtype=torch.float64), atol=1e-12)
    assert (solution.v[mdp.terminal] == 0).all() and (solution.q[mdp.terminal] == 0).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_iterates_noise_and_counts(solver):
    solution = solver(MDP, num_iterations=7, return_iterates=True)
    assert solution.iterations == 7 and len(solution.iterates) == 8
    assert torch.equal(solution.iterates[-1].q, solution.q) and (solution.iterates[0].q.abs() < 1e-15).all()
    for count in (0, 3):
        assert torch.equal(solver(MDP, num_iterations=count).q, solution.iterates[count].q)
    error = torch.zeros(6, 4)
    error[2, 1] = 0.5
    noisy = solver(MDP, num_iterations=4, noise=lambda k: error * (k == 3))
    close(noisy.q, solution.iterates[4].q + error, atol=1e-12)
    ended = solver(GRID, num_iterations=2, noise=lambda k: torch.ones_like(GRID.r))
    assert (ended.q[GRID.terminal] == 0).all() and (ended.v[GRID.terminal] == 0).all()


BAD = [
    ("value", {"num_iterations": -1}, "num_iterations must be >= 0 or None, got -1"),
    ("value", {"tol": 0.0}, "tol must be > 0, got 0"),
    ("value", {"q0": torch.zeros(4, 6)}, r"q0 must have shape \[6, 4\], got \[4, 6\]"),
    ("value", {"noise": lambda k: torch.zeros(6, 4)}, "noise keeps the iterates from converging"),
    ("soft", {"tau": -0.1}, "tau must be .* got -0.1"),
    ("mirror descent", {"tau": -0.1}, "tau must be .* got -0.1"),
    ("mirror descent", {"tau": 0.0}, "tau=0 has no fixed point"),
    ("mirror descent", {"lam": -0.1}, "lam must be finite and >= 0, got -0.1"),
    ("tsallis", {"tau": 0.0}, "tau must be a finite temperature > 0, got 0.0"),
    ("tsallis", {"index": 1.0}, "index must be a finite number > 1, got 1.0"),
    *[(name, {"alpha": 1.1}, "alpha must be in .0, 1., got 1.1") for name in ("munchausen", "implicit", "advantage")],
    *[(name, {"alpha": 1.0}, "alpha=1 has no fixed point") for name in ("munchausen", "implicit", "advantage")],
    ("evaluation", {"pi": torch.ones(6)}, r"pi must have shape \[6, 4\]"),
    ("evaluation", {"pi": torch.full((6, 4), 0.3)}, "must be a probability distribution"),
    ("evaluation", {"pi": torch.full((6, 4), 0.25), "tau": -1.0}, "tau must be a finite temperature"),
]


@pytest.mark.parametrize(("solver", "arguments", "sentence"), BAD)
def test_bad_arguments_are_refused(solver, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        {**SOLVERS, "evaluation": policy_evaluation}[solver](MDP, **arguments)


def test_no_convergence_is_an_error(monkeypatch):
    monkeypatch.setattr("torchrl_reg.tabular.dynamic_programming.MAX_ITERATIONS", 10)
    with pytest.raises(RuntimeError, match=r"10 iterations did not converge to tol=1e-12"):
        value_iteration(MDP)


# -- soft value iteration and policy evaluation ---------------------------------------------------------------------


def test_soft_value_iteration_by_hand():
    # One state, two actions, both ending: q = r, v = tau ln(e^(1/tau) + e^(2/tau)) at tau = 0.5.
    P = torch.tensor([[[0.0, 1.0]] * 2] * 2)
    solution = soft_value_iteration(
        TabularMDP(P, torch.tensor([[1.0, 2.0]] * 2), 0.9, torch.tensor([False, True])), 0.5
    )
    assert solution.v.tolist() == pytest.approx([2.0634640055214863, 0.0], abs=1e-12)
    assert solution.q.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert solution.tau_log_pi[0].tolist() == pytest.approx([-1.06346400552, -0.06346400552])


def test_policy_evaluation_by_hand():
    # The episode continues with probability 1/2: v = (1 + tau ln 2) / (1 - gamma / 2).
    P = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    mdp = TabularMDP(P, torch.ones(2, 2), 0.8, torch.tensor([False, True]))
    v = policy_evaluation(mdp, torch.full((2, 2), 0.5), 0.3).v
    assert v.tolist() == pytest.approx([(1 + 0.3 * math.log(2)) / 0.6, 0.0], abs=1e-12)
    hard = policy_evaluation(mdp, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert hard.v.tolist() == pytest.approx([5.0, 0.0])
    assert hard.tau_log_pi[0].tolist() == [0.0, -math.inf]


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize("tau", [0.0, 0.05, 0.7])
def test_the_fixed_point_is_the_value_of_its_policy_and_no_other_has_more(tau, mdp):
    soft = soft_value_iteration(mdp, tau)
    evaluated = policy_evaluation(mdp, soft.pi, tau)
    close(evaluated.v, soft.v)
    close(evaluated.q, soft.q)
    if tau > 0:
        close(evaluated.tau_log_pi, soft.tau_log_pi, atol=1e-10)
    for other in torch.randn(30, *mdp.r.shape, generator=torch.Generator().manual_seed(0)).softmax(-1):
        assert (policy_evaluation(mdp, other, tau).v <= soft.v).all()
    excess = soft.v - value_iteration(mdp).v  # T7 of the algorithm notes
    assert (excess >= 0).all() and (excess <= tau * math.log(4) / (1 - mdp.gamma)).all()


# -- Munchausen, mirror descent, implicit Q, advantage learning -----------------------------------------------------


Q0 = 2 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


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
def test_fixed_points_are_those_of_soft_value_iteration(alpha, tau, mdp):
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


# -- Tsallis entropies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "tau"), [(1.5, 0.3), (2.0, 0.05), (2.0, 0.5), (3.0, 0.3)])
def test_the_fixed_point_solves_the_sparse_bellman_equation(index, tau):
    """``v`` is the greatest ``<pi, q> - Omega(pi)``, at ``pi``; and the regularizer finds the same."""
    solution = tsallis_value_iteration(MDP, tau, index=index)
    close(solution.q, MDP.backup(solution.v), atol=1e-10)

    def objective(pi):
        return (pi * solution.q).sum(-1) - tau * (pi.pow(index).sum(-1) - 1) / (index * (index - 1))

    close(solution.v, objective(solution.pi), atol=1e-10)
    generator = torch.Generator().manual_seed(0)
    others = torch.randn(300, 6, 4, dtype=torch.float64, generator=generator)
    for spread in (0.03, 1.0, 10.0):
        pi = (solution.pi.clamp(min=1e-6).log() + spread * others).softmax(-1)
        assert (objective(pi) <= solution.v + 1e-12).all()
    out = Tsallis(tau, q=index)(solution.q)
    for name in ("value", "pi", "tau_log_pi"):
        close(getattr(out, name), getattr(solution, "v" if name == "value" else name), atol=1e-10)


def test_limits_of_the_tsallis_entropies():
    """Temperature to 0: the maximum. Index to 1: the soft value. And the published bound."""
    q0 = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    greedy = partial(tsallis_value_iteration, MDP, q0=q0, num_iterations=0)
    close(greedy(1e-9).v, q0.amax(-1), atol=1e-8)
    close(greedy(0.3, index=1.001).v, soft_value_iteration(MDP, 0.3, q0=q0, num_iterations=0).v, atol=1e-3)
    above = tsallis_value_iteration(MDP, 0.3).v - value_iteration(MDP).v
    assert (above >= 0).all() and (above <= 0.3 * (1 - 1 / 4) / (2 * (1 - MDP.gamma))).all()
