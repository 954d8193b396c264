"""Messages, VIREL, compositions and soft Q-iteration over a box, in tables.

Messages against every trajectory of a small MDP, written out, and the two directions of the KL divergence; VIREL's
temperature is the Bellman error and anneals by itself; composed policies keep their bounds.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from torchrl_reg.functional import kl_divergence, policy_entropy, soft_policy
from torchrl_reg.tabular import (
    TabularMDP,
    continuous_soft_q_iteration,
    forward_messages,
    gauss_legendre,
    gridworld,
    optimality_messages,
    policy_evaluation,
    random_mdp,
    soft_composition,
    soft_value_iteration,
    value_iteration,
    virel_iteration,
    virel_objective,
)

TAU, STEPS = 0.5, 3
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)


def small(deterministic: bool = False) -> TabularMDP:
    """Three states, of which the last ends the episode, and two actions."""
    mdp = random_mdp(3, 2, 0.9, seed=4, deterministic=deterministic)
    return TabularMDP(mdp.P, mdp.r, 0.9, torch.tensor([False, False, True]))


class Paths:
    """All paths ``[N]`` of STEPS steps: states, actions, and log-probabilities of the transitions and the posterior."""

    def __init__(self, mdp: TabularMDP) -> None:
        self.states, self.actions, nature, success = [], [], [], []
        start = mdp.start_distribution()
        for states in product(range(3), repeat=STEPS + 1):
            for actions in product(range(2), repeat=STEPS):
                p, r = start[states[0]].item(), 0.0
                for s, a, after in zip(states, actions, states[1:], strict=False):
                    ended = mdp.terminal[s]
                    p *= float(after == s and a == 0) if ended else mdp.P[s, a, after].item()
                    r += 0.0 if ended else mdp.r[s, a].item() - TAU * math.log(2)
                if p > 0:
                    self.states.append(states)
                    self.actions.append(actions)
                    nature.append(p)
                    success.append(p * math.exp(r / TAU))
        self.nature, self.success = (torch.tensor(each, dtype=torch.float64) for each in (nature, success))
        self.posterior = self.success / self.success.sum()
        self.terminal = mdp.terminal

    def under(self, pi: Tensor) -> Tensor:
        """Probability of each path under a policy ``[T, S, A]``."""
        p = self.nature.clone()
        for i, (states, actions) in enumerate(zip(self.states, self.actions, strict=True)):
            for t, (s, a) in enumerate(zip(states, actions, strict=False)):
                p[i] *= 1.0 if self.terminal[s] else pi[t, s, a].item()
        return p

    def visits(self, weight: Tensor) -> Tensor:
        """Weight of each state at each step ``[T + 1, S]``."""
        found = torch.zeros(STEPS + 1, 3, dtype=torch.float64)
        for states, w in zip(self.states, weight, strict=True):
            for t, s in enumerate(states):
                found[t, s] += w
        return found


def kl(p: Tensor, q: Tensor) -> float:
    return (p * (p.log() - q.log())).sum().item()


def test_messages_are_sums_over_all_paths() -> None:
    mdp, paths = small(), Paths(small())
    found = optimality_messages(mdp, TAU, STEPS)
    start = mdp.start_distribution()
    assert (start.log() + found.v[0] / TAU).logsumexp(-1).exp().item() == pytest.approx(paths.success.sum().item())
    close(found.visits, paths.visits(paths.posterior))
    for t, s in product(range(STEPS), range(2)):
        here = [paths.posterior[[p[t] == s and a[t] == k for p, a in zip(paths.states, paths.actions, strict=True)]]
                for k in range(2)]  # fmt: skip
        mass = torch.stack([each.sum() for each in here])
        close(found.pi[t, s], mass / mass.sum())
    product_of_both = (forward_messages(mdp, TAU, STEPS) + found.v / TAU).softmax(-1)
    close(product_of_both, found.visits)


def test_forward_messages_are_partial_sums() -> None:
    mdp, paths = small(), Paths(small())
    forward = forward_messages(mdp, TAU, STEPS).exp()
    close(forward[-1], paths.visits(paths.success)[-1])
    close(forward[0], mdp.start_distribution())
    close(forward[1, 2], (0.5 * 0.5 * (mdp.r[:2] / TAU).exp() * mdp.P[:2, :, 2]).sum())


def test_each_policy_minimizes_its_own_direction_of_the_divergence() -> None:
    mdp, paths = small(), Paths(small())
    posterior, soft = (optimality_messages(mdp, TAU, STEPS, believe_in_luck=luck) for luck in (True, False))
    ahead, back = kl(paths.posterior, paths.under(posterior.pi)), kl(paths.under(soft.pi), paths.posterior)
    assert ahead > 0.01 and back > 0.01 and (posterior.pi - soft.pi)[:, :2].abs().max() > 0.01
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.3):
        noise = scale * torch.randn(soft.pi.shape, dtype=torch.float64, generator=generator)
        for sign in (-1, 1):
            tried = paths.under((posterior.pi.log() + sign * noise).softmax(-1))
            assert kl(paths.posterior, tried) > ahead
            assert kl(paths.under((soft.pi.log() + sign * noise).softmax(-1)), paths.posterior) > back
    assert ahead < kl(paths.posterior, paths.under(soft.pi)) and back < kl(paths.under(posterior.pi), paths.posterior)
    # The evidence lower bound: ln p(O) less the divergence is the maximum-entropy objective.
    start = mdp.start_distribution()
    assert TAU * (math.log(paths.success.sum()) - back) == pytest.approx((start * soft.v[0]).sum().item(), abs=1e-12)


def test_one_gamble_by_hand() -> None:
    """A sure .5 against 1 or 0 with probability .5 each, by way of states that pay in the next step; tau .5."""
    P = torch.zeros(3, 2, 3)
    P[0, 0, 1] = 1.0
    P[0, 1] = torch.tensor([0.0, 0.5, 0.5])
    P[1, :, 1] = P[2, :, 2] = 1.0
    mdp = TabularMDP(P, torch.tensor([[0.5, 0.0], [0.0, 0.0], [1.0, 1.0]]), 0.9)
    luck, soft = (optimality_messages(mdp, 0.5, 2, believe_in_luck=on) for on in (True, False))
    gamble = (1 + math.exp(2)) / 2
    close(luck.q[0, 0], torch.tensor([0.5, 0.5 * math.log(gamble)], dtype=torch.float64))
    close(soft.q[0, 0], torch.tensor([0.5, 0.5]).double())
    close(luck.pi[0, 0], torch.tensor([math.e, gamble], dtype=torch.float64) / (math.e + gamble))
    close(luck.P[0, 0, 1], torch.tensor([0.0, 1.0, math.exp(2)], dtype=torch.float64) / (1 + math.exp(2)))
    close(soft.P[0], mdp.P)


@pytest.mark.parametrize("tau", [0.2, 0.8])
def test_risk_seeking_where_transitions_are_random_and_only_there(tau: float) -> None:
    for seed in range(3):
        for deterministic in (True, False):
            mdp = random_mdp(5, 3, 0.9, seed=seed, deterministic=deterministic)
            luck, soft = (optimality_messages(mdp, tau, 6, believe_in_luck=on) for on in (True, False))
            gain = luck.v - soft.v
            assert gain[-1].abs().max() == 0 and gain.min() > -1e-12
            if deterministic:
                close(luck.q, soft.q)
                close(luck.pi, soft.pi)
                close(luck.P, soft.P)
            else:
                assert gain[0].min() > 1e-3 and (luck.pi - soft.pi).abs().max() > 1e-4


def test_bad_input_of_messages() -> None:
    for arguments, sentence in (((0.0, 3), "tau must be"), ((0.5, 0), "num_steps must be >= 1, got 0")):
        with pytest.raises(ValueError, match=sentence):
            optimality_messages(small(), *arguments)


# -- VIREL ----------------------------------------------------------------------------------------------------------


MDP = random_mdp(6, 4, 0.9, seed=1)
GRID = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3)
Q0 = 2 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
START = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.05, 0.25], dtype=torch.float64)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_error_counts_states_by_their_weight(exponent: float) -> None:
    error = MDP.backup(Q0.amax(-1)) - Q0
    got = virel_iteration(MDP, 0.7, exponent=exponent, q0=Q0, state_distribution=START, num_iterations=0).tau
    assert got == pytest.approx((0.7 / exponent * (START @ error.abs().pow(exponent).mean(-1))).item(), rel=1e-12)


def test_two_steps_written_out() -> None:
    """The error of new values is that under the policy which made them, not under the one it gives."""
    first, second = virel_iteration(MDP, 0.7, q0=Q0, num_iterations=1, return_iterates=True).iterates
    tau = 0.35 * (MDP.r + 0.9 * MDP.P @ Q0.amax(-1) - Q0).square().mean()
    pi = (Q0 / tau).softmax(-1)
    q = MDP.r + 0.9 * MDP.P @ (pi * Q0).sum(-1)
    next_tau = 0.35 * (MDP.r + 0.9 * MDP.P @ (pi * q).sum(-1) - q).square().mean()
    assert (first.tau, second.tau) == (pytest.approx(tau.item()), pytest.approx(next_tau.item()))
    close(first.pi, pi)
    close(second.q, q)
    close(second.pi, (q / next_tau).softmax(-1))


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_objective_is_log_partition_minus_kl_minus_entropy_of_the_states(tau: float) -> None:
    pi = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).softmax(-1)
    log_p = (Q0 / tau).flatten().log_softmax(-1)
    kl = kl_divergence((START.unsqueeze(-1) * pi).log().flatten(), log_p)
    expected = (Q0 / tau).flatten().logsumexp(-1) - kl - policy_entropy(START)
    assert virel_objective(Q0, pi, tau, START) == pytest.approx(expected.item(), abs=1e-10)
    with pytest.raises(ValueError, match="tau must be > 0"):
        virel_objective(Q0, pi, 0.0, START)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize(("beta_scale", "exponent"), [(0.1, 1.0), (1.0, 1.0), (0.1, 2.0), (5.0, 2.0)])
def test_the_temperature_anneals_by_itself_and_the_policy_becomes_greedy(
    mdp: TabularMDP, beta_scale: float, exponent: float
) -> None:
    best = value_iteration(mdp)
    run = virel_iteration(mdp, beta_scale, exponent=exponent, q0=Q0 if mdp is MDP else None, return_iterates=True)
    taus = [iterate.tau for iterate in run.iterates]
    assert taus[0] > 0.01 and max(taus[len(taus) // 2 :]) < 0.1 * taus[0] and taus[-1] <= 1e-10
    close(run.q, best.q, atol=1e-9)
    close(run.v, best.v, atol=1e-9)
    close(policy_evaluation(mdp, run.pi).v, best.v, atol=1e-9)


def test_a_fixed_temperature_ends_at_the_softmax_operator() -> None:
    """``pi = softmax(Q^pi / tau)``, where Q^pi has no entropy term: worse than the optimum, and not the soft one."""
    run = virel_iteration(MDP, 1.0, tau=0.5)
    assert run.tau == 0.5
    close(run.pi, soft_policy(run.q, 0.5))
    close(run.q, policy_evaluation(MDP, run.pi).q, atol=1e-9)
    assert (run.q < value_iteration(MDP).q - 1e-3).all()


def test_it_goes_on_while_the_temperature_changes() -> None:
    """At the values of the first policy nothing moves but the temperature: to 0, and then all does."""
    q0 = virel_iteration(MDP, 1.0, tau=0.1, tol=1e-14).q
    error = MDP.backup(q0.amax(-1)) - q0
    run = virel_iteration(MDP, (0.1 / error.abs().mean()).item(), exponent=1.0, q0=q0, return_iterates=True)
    first, second = run.iterates[:2]
    close(second.q, first.q, atol=1e-13)
    assert (first.tau, second.tau) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))
    close(run.q, value_iteration(MDP).q, atol=1e-9)


BAD_VIREL = [
    ({"beta_scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
    ({"exponent": 0.0}, "exponent must be a finite number >= 1, got 0.0"),
    ({"tau": -1.0}, "tau must be a finite temperature >= 0 or None, got -1.0"),
    ({"tol": 0.0}, "tol must be > 0"),
    ({"state_distribution": math.pi * START}, "start must be a probability distribution"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_VIREL)
def test_bad_input_of_virel(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        virel_iteration(MDP, **{"beta_scale": 1.0, **arguments})


# -- compositions, and a box of actions -----------------------------------------------------------------------------


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
    close(c.value_bound, 0.8 * first.P @ (delta + c.value_bound.amax(-1)), atol=1e-10)
    close(c.policy_bound, 0.8 * first.P @ (c.pi_average * (c.value_bound + c.policy_bound)).sum(-1), atol=1e-10)


def test_composition_is_exact_for_one_task_twice_and_for_bandits() -> None:
    first, _ = two_tasks(0.8, 3)
    for c in (soft_composition(first, first, 0.7), soft_composition(*two_tasks(0.0, 3), 0.7)):
        close(c.value_bound, torch.zeros_like(first.r), atol=1e-10)
        close(c.q_average, c.q_optimal, atol=1e-10)
        close(c.q_executed, c.q_optimal, atol=1e-10)


@pytest.mark.parametrize(("num_points", "dims"), [(1, 1), (4, 1), (5, 2), (3, 3)])
def test_gauss_legendre_integrates_polynomials(num_points: int, dims: int) -> None:
    rule = gauss_legendre(num_points, dims)
    assert rule.nodes.shape == (num_points**dims, dims)
    for power in range(2 * num_points):
        integral = torch.tensor(0.0 if power % 2 else 2 / (power + 1), dtype=torch.float64)
        close(rule.weights @ rule.nodes.pow(power).prod(-1), integral**dims, atol=1e-10)


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
    close(runs[0].v, runs[1].v, atol=1e-10)
    close(runs[1].q, box_mdp(many, 0.8).backup(runs[1].v), atol=1e-10)


FIRST = two_tasks(0.8, 3)[0]
BOX = box_mdp(gauss_legendre(4), 0.8)
BAD_COMPOSITION = [
    (soft_composition, (FIRST, TabularMDP(FIRST.P, FIRST.r, 0.5), 1.0), "first and second must share P, gamma"),
    (soft_composition, (FIRST, TabularMDP(FIRST.P.flip(0), FIRST.r, 0.8), 1.0), "share P, gamma and terminal"),
    (soft_composition, (FIRST, two_tasks(0.8, 3, terminal=True)[0], 1.0), "share P, gamma and terminal"),
    (soft_composition, (FIRST, FIRST, 0.0), "tau must be > 0, got 0.0"),
    (gauss_legendre, (0,), "num_points and dims must be >= 1, got 0 and 1"),
    (continuous_soft_q_iteration, (BOX, torch.ones(3), 1.0), r"weights must be positive of shape \[N\] = \[4\], got"),
    (continuous_soft_q_iteration, (BOX, torch.tensor([1.0, 0.0, 1.0, 1.0]), 1.0), "weights must be positive"),
    (continuous_soft_q_iteration, (BOX, torch.ones(4), 0.0), "tau must be > 0, got 0.0"),
]


@pytest.mark.parametrize(("function", "arguments", "sentence"), BAD_COMPOSITION)
def test_bad_input_of_compositions(function, arguments: tuple[Tensor, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        function(*arguments)
