"""Mutual-information iteration and Blahut-Arimoto against the theory of both."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from torchrl_reg.tabular import (
    TabularMDP,
    blahut_arimoto,
    gridworld,
    mutual_information,
    mutual_information_iteration,
    policy_evaluation,
    random_mdp,
    soft_value_iteration,
    state_occupancy,
    value_iteration,
)

MDP = random_mdp(6, 4, 0.9, seed=1)
GRID = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3)
OCCUPANCIES = ("stationary", "discounted")
UNIFORM = torch.full((4,), 0.25, dtype=torch.float64)
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)


def one_step(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    p = torch.rand(5, generator=generator, dtype=torch.float64)
    return r, p / p.sum()


def priors(count: int, size: int) -> torch.Tensor:
    weights = torch.empty(count, size, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(3))
    return weights / weights.sum(-1, keepdim=True)


# ------------------------------------------------------------------ one step


@pytest.mark.parametrize(("seed", "support"), [(0, [1, 3]), (2, [0]), (5, [0, 2])])
def test_kkt_of_the_rate_distortion_problem(seed, support):
    r, p = one_step(seed)
    best, beta = blahut_arimoto(r, p, 2.0), 2.0
    # By hand from here on: only the prior is taken from the solver.
    z = (best.prior * (beta * r).exp()).sum(-1, keepdim=True)
    kkt = p @ ((beta * r).exp() / z)
    outside = [a for a in range(4) if a not in support]
    close(kkt[support], torch.ones(len(support), dtype=torch.float64), atol=1e-8)
    assert (kkt[outside] < 0.999).all() and (best.prior[outside] < 1e-9).all()
    close(best.kkt, kkt, atol=1e-10)
    pi = best.prior * (beta * r).exp() / z
    close(best.pi, pi, atol=1e-12)
    information = p @ (pi * (pi / (p @ pi)).log()).sum(-1)
    close(mutual_information(best.pi, p), information, atol=1e-12)
    assert best.objective == pytest.approx((p @ (pi * r).sum(-1) - information / beta).item(), abs=1e-10)
    # No other prior does better.
    values = (p * (priors(400, 4).unsqueeze(1) * (beta * r).exp()).sum(-1).log() / beta).sum(-1)
    assert values.max() < best.objective + 1e-12 and values.max() > best.objective - 0.1


def test_plain_updates_are_those_of_blahut_and_arimoto():
    r, p = one_step(1)
    run = blahut_arimoto(r, p, 3.0, num_iterations=5, accelerate=False, return_iterates=True)
    assert run.iterations == 5 and len(run.iterates) == 6
    prior = UNIFORM
    for iterate in run.iterates:
        close(iterate.prior, prior, atol=1e-13)
        prior = p @ torch.softmax(prior.log() + 3.0 * r, -1)


def test_acceleration_changes_the_speed_not_the_solution():
    r, p = one_step(0)
    fast, plain = blahut_arimoto(r, p, 2.0, return_iterates=True), blahut_arimoto(r, p, 2.0, accelerate=False)
    close(fast.prior, plain.prior)
    assert fast.iterations < 200 < 1000 < plain.iterations
    for iterate in fast.iterates:
        assert fast.objective - iterate.objective <= math.log1p(iterate.gap) / 2.0 + 1e-12


# ------------------------------------------------------------------ many steps


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize("occupancy", OCCUPANCIES)
def test_the_solution_is_a_joint_fixed_point(occupancy, mdp):
    beta = 10.0
    best = mutual_information_iteration(mdp, beta, occupancy=occupancy)
    held = soft_value_iteration(mdp, 1 / beta, prior=best.prior)
    mu = state_occupancy(mdp, held.pi, occupancy=occupancy)
    for ours, expected in ((best.q, held.q), (best.v, held.v), (best.pi, held.pi), (best.occupancy, mu)):
        close(ours, expected)
    close(mu @ held.pi, best.prior)
    assert best.residual <= 1e-12 and best.kkt.max() <= 1 + 1e-8
    assert ((best.kkt - 1)[best.prior > 1e-3].abs() < 1e-8).all()
    start = torch.tensor([0.4, 0.3, 0.2, 0.1])
    again = mutual_information_iteration(mdp, beta, occupancy=occupancy, prior0=start, accelerate=False)
    close(again.prior, best.prior, atol=1e-8)


# In the last an accelerated step would lower the objective although the gap falls.
@pytest.mark.parametrize("mdp", [MDP, GRID, random_mdp(4, 3, 0.9, seed=20, branching=2)], ids=["random", "grid", "few"])
@pytest.mark.parametrize("accelerate", [False, True])
def test_the_discounted_form_is_monotone_in_the_value_of_the_start(accelerate, mdp):
    start = mdp.start_distribution()
    run = mutual_information_iteration(
        mdp, 8.0, occupancy="discounted", num_iterations=40, accelerate=accelerate, return_iterates=True
    )
    objectives = [(start @ iterate.v).item() for iterate in run.iterates]
    assert objectives == [iterate.objective for iterate in run.iterates]
    assert all(later >= earlier - 1e-12 for earlier, later in zip(objectives, objectives[1:], strict=False))
    assert objectives[-1] > objectives[0] + 1e-3


def test_no_prior_beats_the_discounted_solution():
    mdp, beta = random_mdp(5, 3, 0.7, seed=4), 4.0
    start = torch.tensor([0.5, 0.1, 0.1, 0.1, 0.2], dtype=torch.float64)
    best = mutual_information_iteration(mdp, beta, occupancy="discounted", start=start)

    def value(prior):
        return (start @ soft_value_iteration(mdp, 1 / beta, prior=prior, q0=best.q, tol=1e-8).v).item()

    far = max(value(prior) for prior in priors(40, 3))
    near = max(value(0.98 * best.prior + 0.02 * corner) for corner in torch.eye(3).double())
    assert best.objective - 0.1 < far < best.objective and near < best.objective - 1e-6


def test_occupancy_against_a_long_walk():
    goal = torch.tensor([7])
    pi = torch.softmax(torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    step, start = torch.einsum("sa,sat->st", pi, GRID.P), torch.eye(8, dtype=torch.float64)[0]
    alive, restarting = start, start
    visits, discounted = torch.zeros_like(start), torch.zeros_like(start)
    for t in range(4000):
        visits, restarting = visits + restarting, restarting @ step
        restarting = restarting.index_fill(0, goal, 0.0) + restarting[goal] * start
        discounted, alive = discounted + 0.8**t * alive, (alive @ step).index_fill(0, goal, 0.0)
    close(state_occupancy(GRID, pi, start=start), visits / visits.sum(), atol=1e-3)
    close(state_occupancy(GRID, pi, occupancy="discounted", start=start), discounted / discounted.sum(), atol=1e-12)


# ------------------------------------------------------------------ a prior that is held


def test_a_uniform_prior_is_sql_is_a_shifted_logsumexp():
    beta, shift = 3.0, math.log(4) / 3.0
    plain = soft_value_iteration(MDP, 1 / beta)
    held = soft_value_iteration(MDP, 1 / beta, prior=UNIFORM)
    close(held.pi, plain.pi, atol=1e-11)
    close(held.q, plain.q - MDP.gamma * shift / (1 - MDP.gamma))
    close(mutual_information_iteration(MDP, beta, num_iterations=0).q, held.q, atol=1e-10)


def test_an_excluded_action_is_never_taken_and_never_found_again():
    prior = torch.tensor([0.5, 0.5, 0.0, 0.0])
    held = soft_value_iteration(MDP, 0.1, prior=prior)
    assert (held.pi[:, 2:] == 0).all() and (held.tau_log_pi[:, 2:] == -math.inf).all()
    fewer = TabularMDP(MDP.P[:, :2], MDP.r[:, :2], 0.9)
    close(held.v, soft_value_iteration(fewer, 0.1, prior=UNIFORM[:2] * 2).v, atol=1e-10)
    # Its tau ln pi = -inf does not hide how much that of the others still changes.
    one = soft_value_iteration(MDP, 0.1, prior=prior, num_iterations=1, return_iterates=True)
    first, second = one.iterates
    change = (second.tau_log_pi - first.tau_log_pi)[:, :2].abs().max().item()
    assert change > (second.q - first.q).abs().max().item() and one.residual == change


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize("occupancy", OCCUPANCIES)
def test_nothing_overflows(occupancy):
    huge = TabularMDP(MDP.P, 1e6 * MDP.r, MDP.gamma)
    run = mutual_information_iteration(huge, 1e3, occupancy=occupancy, num_iterations=20)
    assert all(part.isfinite().all() for part in (run.q, run.pi, run.prior, run.kkt))
    close(run.v / 1e6, value_iteration(MDP).v, atol=1e-6)


@pytest.mark.parametrize("occupancy", OCCUPANCIES)
def test_large_beta_is_value_iteration(occupancy):
    best, optimal = mutual_information_iteration(MDP, 1e4, occupancy=occupancy), value_iteration(MDP)
    close(best.v, optimal.v, atol=1e-2)
    close(best.pi, optimal.pi, atol=1e-6)
    close(best.prior, best.occupancy @ optimal.pi, atol=1e-6)


def test_small_beta_is_the_best_single_action():
    start, prior = MDP.start_distribution(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    always = torch.eye(4, dtype=torch.float64).unsqueeze(1).expand(4, 6, 4)
    values = torch.stack([start @ policy_evaluation(MDP, pi).v for pi in always])
    best = mutual_information_iteration(MDP, 1e-4, occupancy="discounted", tol=1e-9)
    close(best.prior, torch.nn.functional.one_hot(values.argmax(), 4).double(), atol=1e-4)
    assert best.objective == pytest.approx(values.max().item(), abs=1e-3)
    held = soft_value_iteration(MDP, 1e9, prior=prior)
    close(held.pi, prior.double().expand(6, 4), atol=1e-7)
    close(held.v, policy_evaluation(MDP, prior.expand(6, 4)).v, atol=1e-5)


# ------------------------------------------------------------------ bad input

APART = TabularMDP(torch.eye(2).unsqueeze(1).expand(2, 2, 2), torch.eye(2), 0.9)
ENDED = TabularMDP(APART.P, APART.r, 0.9, torch.tensor([True, True]))
BAD_PRIORS = [
    (torch.ones(3) / 3, r"must have shape \[A\] = \[4\], got \[3\]"),
    (torch.tensor([1.5, -0.5, 0.0, 0.0]), "must not be negative, got"),
    (torch.ones(4), "must sum to 1, got 4.0"),
    (torch.full((4,), math.nan), "must not be negative"),
]
BAD = [
    *[({"beta": beta}, "beta must be a finite inverse temperature > 0, got") for beta in (0.0, math.inf, math.nan)],
    *[({"prior0": prior}, f"prior0 {sentence}") for prior, sentence in BAD_PRIORS],
    ({"occupancy": "visited"}, "occupancy must be 'stationary' or 'discounted', got 'visited'"),
    ({"start": UNIFORM}, r"start must have shape \[S\] = \[6\], got \[4\]"),
    ({"start": torch.full((6,), 1 / 3)}, "start must be a probability distribution"),
    ({"prior0": torch.tensor([1.0, 0.0, 0.0, 0.0])}, "prior0 must be positive"),
    ({"tol": 0.0}, "tol must be > 0, got 0.0"),
    ({"mdp": APART}, "mdp must have one stationary distribution"),
    ({"mdp": ENDED}, "terminal must leave a state to start in"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        mutual_information_iteration(**{"mdp": MDP, "beta": 1.0, **arguments})


@pytest.mark.parametrize(("prior", "sentence"), BAD_PRIORS)
def test_bad_priors_are_refused(prior, sentence):
    with pytest.raises(ValueError, match=f"prior {sentence}"):
        soft_value_iteration(MDP, 0.1, prior=prior)


def test_bad_rewards_and_no_convergence(monkeypatch):
    with pytest.raises(ValueError, match=r"r must have shape \[S, A\], got \[3\]"):
        blahut_arimoto(torch.ones(3), torch.ones(3) / 3, 1.0)
    monkeypatch.setattr("torchrl_reg.tabular.dynamic_programming.MAX_ITERATIONS", 2)
    with pytest.raises(RuntimeError, match=r"2 prior updates did not converge to tol=1e-12: the KKT gap is"):
        mutual_information_iteration(MDP, 10.0)
