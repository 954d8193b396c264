"""What the exact solvers share, and value and soft value iteration against their theory."""

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
    monkeypatch.setattr("torchrl_reg.tabular.solution.MAX_ITERATIONS", 10)
    with pytest.raises(RuntimeError, match=r"10 iterations did not converge to tol=1e-12"):
        value_iteration(MDP)


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
    # The state goes on with probability 1/2: v = (1 + tau ln 2) / (1 - gamma / 2).
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
