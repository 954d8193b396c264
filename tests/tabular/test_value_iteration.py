"""The solvers' shared interface, and value and soft value iteration against their theory."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

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
    "tsallis": partial(tsallis_value_iteration, tau=0.3),
    "tsallis 1.5": partial(tsallis_value_iteration, tau=0.3, index=1.5),
    "munchausen": partial(munchausen_value_iteration, tau=0.3, alpha=0.6, clip_min=-0.4),
    "mirror descent": partial(mirror_descent_value_iteration, lam=0.2, tau=0.1),
    "advantage": partial(advantage_learning, alpha=0.6),
    "persistent": partial(advantage_learning, alpha=0.6, persistent=True),
    "implicit": partial(implicit_q_iteration, tau=0.3, alpha=0.6),
}
MDP = random_mdp(6, 4, 0.9, seed=1)
GRID = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_converges_to_a_fixed_point_from_anywhere(solver, mdp):
    solution = solver(mdp)
    assert solution.residual <= 1e-12 * max(1.0, solution.q.abs().max().item())
    q0 = 5 * torch.randn(mdp.r.shape, generator=torch.Generator().manual_seed(0))
    again = solver(mdp, q0=q0)
    close(again.q, solution.q, 1e-9)
    close(again.v, solution.v, 1e-9)
    best, second = solution.q.topk(2, dim=-1).values.unbind(-1)
    greedy = solver in (SOLVERS["value"], SOLVERS["advantage"], SOLVERS["persistent"])
    # The grid is symmetric: actions that tie share a greedy policy only where they tie to the last bit.
    settled = best - second > 1e-8 if greedy else torch.ones_like(best, dtype=torch.bool)
    close(again.pi[settled], solution.pi[settled], 1e-9)
    close((again.pi * solution.q).sum(-1), (solution.pi * solution.q).sum(-1), 1e-9)
    assert (solution.v[mdp.terminal] == 0).all() and (solution.q[mdp.terminal] == 0).all()
    close(solution.pi.sum(-1), torch.ones(mdp.num_states, dtype=torch.float64), 1e-12)
    assert solution.iterates == ()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_iterates_noise_and_counts(solver):
    solution = solver(MDP, num_iterations=7, return_iterates=True)
    assert solution.iterations == 7 and len(solution.iterates) == 8
    assert torch.equal(solution.iterates[-1].q, solution.q)
    assert (solution.iterates[0].q.abs() < 1e-15).all()
    assert torch.equal(solver(MDP, num_iterations=3).q, solution.iterates[3].q)
    error = torch.zeros(6, 4)
    error[2, 1] = 0.5
    noisy = solver(MDP, num_iterations=4, noise=lambda k: error * (k == 3))
    close(noisy.q, solution.iterates[4].q + error, 1e-12)
    ended = solver(GRID, num_iterations=2, noise=lambda k: torch.ones_like(GRID.r))
    assert (ended.q[GRID.terminal] == 0).all() and (ended.v[GRID.terminal] == 0).all()
    none = solver(MDP, num_iterations=0)
    assert none.iterations == 0 and (none.q.abs() < 1e-15).all()


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_bad_loop_arguments_are_refused(solver):
    with pytest.raises(ValueError, match=r"num_iterations must be >= 0 or None, got -1"):
        solver(MDP, num_iterations=-1)
    with pytest.raises(ValueError, match=r"tol must be > 0, got 0"):
        solver(MDP, tol=0.0)
    with pytest.raises(ValueError, match=r"q0 must have shape \[6, 4\], got \[4, 6\]"):
        solver(MDP, q0=torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"noise keeps the iterates from converging"):
        solver(MDP, noise=lambda k: torch.zeros(6, 4))


@pytest.mark.parametrize("solver", [munchausen_value_iteration, implicit_q_iteration, advantage_learning])
def test_bad_alpha_is_refused(solver):
    options = {} if solver is advantage_learning else {"tau": 0.3}
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 1.1"):
        solver(MDP, alpha=1.1, **options)
    with pytest.raises(ValueError, match=r"alpha=1 has no fixed point"):
        solver(MDP, alpha=1.0, **options)


def test_bad_temperatures_are_refused():
    for solver in (soft_value_iteration, partial(mirror_descent_value_iteration, lam=0.1)):
        with pytest.raises(ValueError, match=r"tau must be .* got -0.1"):
            solver(MDP, tau=-0.1)
    with pytest.raises(ValueError, match=r"tau=0 has no fixed point"):
        mirror_descent_value_iteration(MDP, lam=0.1, tau=0.0)
    with pytest.raises(ValueError, match=r"lam must be finite and >= 0, got -0.1"):
        mirror_descent_value_iteration(MDP, lam=-0.1, tau=0.1)


def test_no_convergence_is_an_error(monkeypatch):
    monkeypatch.setattr("torchrl_reg.tabular.solution.MAX_ITERATIONS", 10)
    with pytest.raises(RuntimeError, match=r"10 iterations did not converge to tol=1e-12"):
        value_iteration(MDP)


def test_soft_value_iteration_by_hand():
    # One state, two actions, both ending: q = r, v = tau ln(e^(1/tau) + e^(2/tau)) at tau = 0.5.
    P = torch.tensor([[[0.0, 1.0]] * 2] * 2)
    ending = torch.tensor([False, True])
    solution = soft_value_iteration(TabularMDP(P, torch.tensor([[1.0, 2.0]] * 2), 0.9, ending), 0.5)
    assert solution.v.tolist() == pytest.approx([2.0634640055214863, 0.0], abs=1e-12)
    assert solution.q.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert solution.tau_log_pi[0].tolist() == pytest.approx([-1.06346400552, -0.06346400552])


def test_value_iteration_policy_is_optimal():
    best = value_iteration(MDP)
    close(policy_evaluation(MDP, best.pi).v, best.v, 1e-10)
    for other in torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1):
        assert (policy_evaluation(MDP, other).v <= best.v).all()


@pytest.mark.parametrize("tau", [0.05, 0.7])
def test_soft_fixed_point_is_the_value_of_its_policy(tau):
    for mdp in (MDP, GRID):
        soft = soft_value_iteration(mdp, tau)
        evaluated = policy_evaluation(mdp, soft.pi, tau)
        close(evaluated.v, soft.v, 1e-9)
        close(evaluated.q, soft.q, 1e-9)
        close(evaluated.tau_log_pi, soft.tau_log_pi, 1e-10)
    soft = soft_value_iteration(MDP, tau)
    for other in torch.randn(50, 6, 4, generator=torch.Generator().manual_seed(0)).softmax(-1):
        assert (policy_evaluation(MDP, other, tau).v <= soft.v).all()


def test_policy_evaluation_by_hand():
    # The state goes on with probability 1/2: v = (1 + tau ln 2) / (1 - gamma / 2).
    P = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    mdp = TabularMDP(P, torch.ones(2, 2), 0.8, torch.tensor([False, True]))
    half = torch.full((2, 2), 0.5)
    v = policy_evaluation(mdp, half, 0.3).v
    assert v.tolist() == pytest.approx([(1 + 0.3 * math.log(2)) / 0.6, 0.0], abs=1e-12)
    hard = policy_evaluation(mdp, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert hard.v.tolist() == pytest.approx([5.0, 0.0])
    assert hard.tau_log_pi[0].tolist() == [0.0, -math.inf]


def test_policy_evaluation_refuses_what_is_no_policy():
    with pytest.raises(ValueError, match=r"pi must have shape \[6, 4\]"):
        policy_evaluation(MDP, torch.ones(6))
    with pytest.raises(ValueError, match=r"must be a probability distribution"):
        policy_evaluation(MDP, torch.full((6, 4), 0.3))
    with pytest.raises(ValueError, match=r"tau must be a finite temperature"):
        policy_evaluation(MDP, torch.full((6, 4), 0.25), -1.0)


@pytest.mark.parametrize("tau", [0.05, 0.7])
def test_soft_value_bounds_and_contraction(tau):
    # T7: 0 <= v_tau - v* <= tau ln A / (1 - gamma); modulus gamma in the sup norm.
    bound = tau * math.log(4) / (1 - 0.9)
    best, soft = value_iteration(MDP), soft_value_iteration(MDP, tau)
    excess = soft.v - best.v
    assert (excess >= 0).all() and (excess <= bound).all()
    assert (best.q - policy_evaluation(MDP, soft.pi).q).max() <= bound
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        one, two = 3 * torch.randn(2, 6, 4, dtype=torch.float64, generator=generator)
        updated = [soft_value_iteration(MDP, tau, q0=q, num_iterations=1).q for q in (one, two)]
        distance = (updated[0] - updated[1]).abs().max()
        assert distance <= 0.9 * (one - two).abs().max() + 1e-12


def test_uniform_prior_shifts_q_by_a_constant():
    # T8: with logmeanexp for logsumexp, q falls by gamma tau ln A / (1 - gamma); pi stays.
    tau, q = 0.4, torch.zeros(6, 4, dtype=torch.float64)
    for _ in range(400):
        q = MDP.backup(tau * (torch.logsumexp(q / tau, -1) - math.log(4)))
    soft = soft_value_iteration(MDP, tau)
    close(soft.q - q, torch.full_like(q, 0.9 * tau * math.log(4) / (1 - 0.9)), 1e-10)
    close((q / tau).softmax(-1), soft.pi, 1e-10)


def test_evaluation_without_entropy_is_no_contraction():
    # T9: r + gamma P <softmax(q / tau), q> lacks the entropy term and has several fixed points
    # where soft value iteration has one. Action 0 stays with reward 0.15, action 1 ends.
    P = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    r = torch.tensor([[0.15, 0.0], [0.0, 0.0]])
    mdp, tau = TabularMDP(P, r, 0.99, torch.tensor([False, True])), 1.0
    fixed_points, right = [], []
    for start in (0.0, 30.0):
        q0 = torch.tensor([[start, 0.0], [0.0, 0.0]], dtype=torch.float64)
        q = q0
        for _ in range(5000):
            q = mdp.backup(((q / tau).softmax(-1) * q).sum(-1))
        fixed_points.append(q[0, 0].item())
        right.append(soft_value_iteration(mdp, tau, q0=q0).q[0, 0].item())
    assert fixed_points[0] < 1 and fixed_points[1] > 10
    assert right[0] == pytest.approx(right[1], abs=1e-7)
