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


def one_step(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    p = torch.rand(5, generator=generator, dtype=torch.float64)
    return r, p / p.sum()


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=atol)


def uniform(n: int) -> torch.Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


# ------------------------------------------------------------------ one step


@pytest.mark.parametrize(("seed", "support"), [(0, [1, 3]), (2, [0]), (5, [0, 2])])
def test_kkt_of_the_rate_distortion_problem(seed, support):
    r, p = one_step(seed)
    best, beta = blahut_arimoto(r, p, 2.0), 2.0
    # By hand from here on: only the prior is taken from the solver.
    z = (best.prior * (beta * r).exp()).sum(-1, keepdim=True)
    kkt = (p.unsqueeze(-1) * (beta * r).exp() / z).sum(0)
    outside = [a for a in range(4) if a not in support]
    close(kkt[support], torch.ones(len(support), dtype=torch.float64), 1e-8)
    assert (kkt[outside] < 0.999).all() and (best.prior[outside] < 1e-9).all()
    close(best.kkt, kkt, 1e-10)
    pi = best.prior * (beta * r).exp() / z
    close(best.pi, pi, 1e-12)
    information = (p.unsqueeze(-1) * pi * (pi / (p @ pi)).log()).sum()
    objective = (p.unsqueeze(-1) * pi * r).sum() - information / beta
    assert best.objective == pytest.approx(objective.item(), abs=1e-10)
    assert mutual_information(best.pi, p).item() == pytest.approx(information.item(), abs=1e-12)
    # No other prior does better.
    generator = torch.Generator().manual_seed(3)
    others = torch.empty(400, 1, 4, dtype=torch.float64).exponential_(generator=generator)
    others = others / others.sum(-1, keepdim=True)
    values = (p * (others * (beta * r).exp()).sum(-1).log() / beta).sum(-1)
    assert values.max() < best.objective + 1e-12 and values.max() > best.objective - 0.1


@pytest.mark.parametrize("accelerate", [False, True])
def test_the_one_step_objective_is_monotone_and_within_the_gap(accelerate):
    r, p = one_step(0)
    beta = 2.0
    best = blahut_arimoto(r, p, beta).objective
    run = blahut_arimoto(r, p, beta, num_iterations=60, accelerate=accelerate, return_iterates=True)
    objectives = [iterate.objective for iterate in run.iterates]
    assert all(later >= earlier - 1e-13 for earlier, later in zip(objectives, objectives[1:], strict=False))
    assert objectives[-1] > objectives[0] + 1e-3
    for iterate in run.iterates:
        assert best - iterate.objective <= math.log1p(iterate.gap) / beta + 1e-12
    assert run.iterations == 60 and len(run.iterates) == 61


def test_plain_updates_are_those_of_blahut_and_arimoto():
    r, p = one_step(1)
    run = blahut_arimoto(r, p, 3.0, num_iterations=5, accelerate=False, return_iterates=True)
    prior = uniform(4)
    for iterate in run.iterates:
        close(iterate.prior, prior, 1e-13)
        pi = torch.softmax(prior.log() + 3.0 * r, -1)
        prior = p @ pi


def test_acceleration_changes_the_speed_not_the_solution():
    r, p = one_step(0)
    fast, plain = blahut_arimoto(r, p, 2.0), blahut_arimoto(r, p, 2.0, accelerate=False)
    close(fast.prior, plain.prior, 1e-9)
    assert fast.iterations < 200 < 1000 < plain.iterations


# ------------------------------------------------------------------ many steps


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize("occupancy", OCCUPANCIES)
def test_the_solution_is_a_joint_fixed_point(occupancy, mdp):
    beta = 10.0
    best = mutual_information_iteration(mdp, beta, occupancy=occupancy)
    held = soft_value_iteration(mdp, 1 / beta, prior=best.prior)
    close(best.q, held.q, 1e-10)
    close(best.v, held.v, 1e-10)
    close(best.pi, held.pi, 1e-9)
    mu = state_occupancy(mdp, held.pi, occupancy=occupancy)
    close(mu @ held.pi, best.prior, 1e-9)
    close(best.occupancy, mu, 1e-9)
    assert best.residual <= 1e-12 and best.kkt.max() <= 1 + 1e-8
    close(best.kkt[best.prior > 1e-3], torch.ones(4, dtype=torch.float64)[best.prior > 1e-3], 1e-8)
    again = mutual_information_iteration(
        mdp, beta, occupancy=occupancy, prior0=torch.tensor([0.4, 0.3, 0.2, 0.1]), accelerate=False
    )
    close(again.prior, best.prior, 1e-8)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
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
    generator = torch.Generator().manual_seed(0)
    priors = torch.empty(80, 3, dtype=torch.float64).exponential_(generator=generator)
    solve = partial(soft_value_iteration, mdp, 1 / beta, q0=best.q, tol=1e-8)
    values = [(start @ solve(prior=prior / prior.sum()).v).item() for prior in priors]
    near = [(start @ solve(prior=0.98 * best.prior + 0.02 * corner).v).item() for corner in torch.eye(3).double()]
    assert max(values) < best.objective and best.objective - 0.1 < max(values)
    assert max(near) < best.objective - 1e-6
    stationary = mutual_information_iteration(mdp, beta, occupancy="stationary", start=start)
    assert (stationary.prior - best.prior).abs().max() > 1e-3
    assert (start @ stationary.v).item() < best.objective - 1e-7


def test_the_objective_is_return_minus_information():
    # sum_t gamma^t (r - KL(pi || rho) / beta), which at the optimal prior is the information under the occupancy.
    beta = 10.0
    best = mutual_information_iteration(MDP, beta, occupancy="discounted")
    plain = MDP.start_distribution() @ policy_evaluation(MDP, best.pi).v
    information = mutual_information(best.pi, best.occupancy) / (1 - MDP.gamma)
    assert best.objective == pytest.approx((plain - information / beta).item(), abs=1e-9)
    assert information > 0.1


def test_stationary_and_discounted_agree_as_gamma_tends_to_1():
    for mdp in (MDP, gridworld(["....", ".#.G"], 0.8, slip=0.3)):
        distances = []
        for gamma in (0.9, 0.99, 0.999):
            patient = TabularMDP(mdp.P, mdp.r, gamma, mdp.terminal)
            start = torch.eye(mdp.num_states)[0]
            priors = [mutual_information_iteration(patient, 5.0, occupancy=o, start=start).prior for o in OCCUPANCIES]
            distances.append((priors[0] - priors[1]).abs().max().item())
        assert distances[0] > 5e-3 and distances[1] < distances[0] / 5 and distances[2] < distances[1] / 5


def test_occupancy_against_a_long_walk():
    mdp, goal = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3), 7
    pi = torch.softmax(torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    step, start = torch.einsum("sa,sat->st", pi, mdp.P), torch.eye(8, dtype=torch.float64)[0]
    alive, restarting = start, start
    visits, discounted = torch.zeros_like(start), torch.zeros_like(start)
    for t in range(4000):
        visits, restarting = visits + restarting, restarting @ step
        restarting = restarting.index_fill(0, torch.tensor(goal), 0.0) + restarting[goal] * start
        discounted, alive = discounted + 0.8**t * alive, (alive @ step).index_fill(0, torch.tensor(goal), 0.0)
    close(state_occupancy(mdp, pi, start=start), visits / visits.sum(), 1e-3)
    close(state_occupancy(mdp, pi, occupancy="discounted", start=start), discounted / discounted.sum(), 1e-12)


# ------------------------------------------------------------------ a prior that is held


def test_a_uniform_prior_is_sql_is_a_shifted_logsumexp():
    beta, shift = 3.0, math.log(4) / 3.0
    plain = soft_value_iteration(MDP, 1 / beta)
    held = soft_value_iteration(MDP, 1 / beta, prior=uniform(4))
    close(held.pi, plain.pi, 1e-11)
    close(held.q, plain.q - MDP.gamma * shift / (1 - MDP.gamma), 1e-9)
    first = mutual_information_iteration(MDP, beta, num_iterations=0)
    close(first.q, held.q, 1e-10)
    # One backup of the same q: the target is shifted by -gamma ln A / beta.
    q0 = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    one = partial(soft_value_iteration, MDP, 1 / beta, q0=q0, num_iterations=1)
    close(one(prior=uniform(4)).q, one().q - MDP.gamma * shift, 1e-13)


def test_an_excluded_action_is_never_taken_and_never_found_again():
    held = soft_value_iteration(MDP, 0.1, prior=torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert (held.pi[:, 2:] == 0).all() and (held.tau_log_pi[:, 2:] == -math.inf).all()
    fewer = TabularMDP(MDP.P[:, :2], MDP.r[:, :2], 0.9)
    close(held.v, soft_value_iteration(fewer, 0.1, prior=uniform(2)).v, 1e-10)


def test_policies_do_not_see_a_constant():
    q = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4])
    policies = [soft_value_iteration(MDP, 0.3, prior=prior, q0=q + c, num_iterations=0).pi for c in (0.0, 7.0)]
    close(policies[0], policies[1], 1e-13)
    shifted = TabularMDP(MDP.P, MDP.r + 7.0, MDP.gamma)
    ours, theirs = mutual_information_iteration(MDP, 10.0), mutual_information_iteration(shifted, 10.0)
    close(ours.pi, theirs.pi, 1e-8)
    close(ours.v + 70.0, theirs.v, 1e-8)


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize("occupancy", OCCUPANCIES)
def test_nothing_overflows(occupancy):
    huge = TabularMDP(MDP.P, 1e6 * MDP.r, MDP.gamma)
    run = mutual_information_iteration(huge, 1e3, occupancy=occupancy, num_iterations=20)
    assert run.q.abs().max() > 1e6
    for part in (run.q, run.v, run.pi, run.prior, run.kkt):
        assert part.isfinite().all()
    close(run.v / 1e6, value_iteration(MDP).v, 1e-6)


@pytest.mark.parametrize("occupancy", OCCUPANCIES)
def test_large_beta_is_value_iteration(occupancy):
    best = mutual_information_iteration(MDP, 1e4, occupancy=occupancy)
    optimal = value_iteration(MDP)
    close(best.v, optimal.v, 1e-2)
    assert torch.equal(best.pi.argmax(-1), optimal.q.argmax(-1)) and best.pi.amax(-1).min() > 1 - 1e-6
    frequencies = best.occupancy @ torch.nn.functional.one_hot(optimal.q.argmax(-1), 4).double()
    close(best.prior, frequencies, 1e-6)


def test_small_beta_is_the_best_single_action():
    start, prior = MDP.start_distribution(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    always = torch.eye(4, dtype=torch.float64).unsqueeze(1).expand(4, 6, 4)
    values = torch.stack([start @ policy_evaluation(MDP, pi).v for pi in always])
    best = mutual_information_iteration(MDP, 1e-4, occupancy="discounted", tol=1e-9)
    close(best.prior, torch.nn.functional.one_hot(values.argmax(), 4).double(), 1e-4)
    assert best.objective == pytest.approx(values.max().item(), abs=1e-3)
    held = soft_value_iteration(MDP, 1e9, prior=prior)
    close(held.pi, prior.double().expand(6, 4), 1e-7)
    close(held.v, policy_evaluation(MDP, prior.expand(6, 4)).v, 1e-5)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match=r"beta must be a finite inverse temperature > 0, got"):
        mutual_information_iteration(MDP, beta)
    with pytest.raises(ValueError, match=r"beta must be"):
        blahut_arimoto(*one_step(0), beta)


@pytest.mark.parametrize(
    ("prior", "sentence"),
    [
        (torch.ones(3) / 3, r"must have shape \[A\] = \[4\], got \[3\]"),
        (torch.tensor([1.5, -0.5, 0.0, 0.0]), "must not be negative, got"),
        (torch.ones(4), "must sum to 1, got 4.0"),
        (torch.full((4,), math.nan), "must not be negative"),
    ],
)
def test_bad_priors(prior, sentence):
    with pytest.raises(ValueError, match=f"prior {sentence}"):
        soft_value_iteration(MDP, 0.1, prior=prior)
    with pytest.raises(ValueError, match=f"prior0 {sentence}"):
        mutual_information_iteration(MDP, 1.0, prior0=prior)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"occupancy": "visited"}, "occupancy must be 'stationary' or 'discounted', got 'visited'"),
        ({"start": uniform(4)}, r"start must have shape \[S\] = \[6\], got \[4\]"),
        ({"start": 2 * uniform(6)}, "start must be a probability distribution"),
        ({"prior0": torch.tensor([1.0, 0.0, 0.0, 0.0])}, "prior0 must be positive"),
        ({"num_iterations": -1}, "num_iterations must be >= 0 or None, got -1"),
        ({"tol": 0.0}, "tol must be > 0, got 0.0"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        mutual_information_iteration(MDP, 1.0, **options)


def test_bad_problems(monkeypatch):
    with pytest.raises(ValueError, match=r"r must have shape \[S, A\], got \[3\]"):
        blahut_arimoto(torch.ones(3), torch.ones(3) / 3, 1.0)
    apart = TabularMDP(torch.eye(2).unsqueeze(1).expand(2, 2, 2), torch.eye(2), 0.9)
    with pytest.raises(ValueError, match="mdp must have one stationary distribution"):
        mutual_information_iteration(apart, 1.0)
    with pytest.raises(ValueError, match="terminal must leave a state to start in"):
        mutual_information_iteration(TabularMDP(apart.P, apart.r, 0.9, torch.tensor([True, True])), 1.0)
    monkeypatch.setattr("torchrl_reg.tabular.solution.MAX_ITERATIONS", 2)
    with pytest.raises(RuntimeError, match=r"2 prior updates did not converge to tol=1e-12: the KKT gap is"):
        mutual_information_iteration(MDP, 10.0)
