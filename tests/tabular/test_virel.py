"""What VIREL promises, in tables: the desiderata, the lower bound, scaling, annealing by itself."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import kl_divergence, policy_entropy, soft_policy, soft_value
from torchrl_reg.tabular import (
    TabularMDP,
    gridworld,
    policy_evaluation,
    random_mdp,
    value_iteration,
    virel_iteration,
    virel_objective,
)

MDP = random_mdp(6, 4, 0.9, seed=1)
GRID = gridworld(["...", ".#.", "..G"], 0.8, slip=0.3)
Q0 = 2 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
D = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.05, 0.25], dtype=torch.float64)


def close(actual: torch.Tensor, expected: object, atol: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=atol)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_at_the_optimum_the_temperature_is_zero_and_the_policy_deterministic(exponent: float) -> None:
    best = value_iteration(MDP)
    stays = virel_iteration(MDP, 0.5, exponent=exponent, q0=best.q, num_iterations=1, return_iterates=True)
    for iterate in stays.iterates:
        assert iterate.tau < 1e-11
        close(policy_entropy(iterate.pi), torch.zeros(6), 1e-9)
        assert torch.equal(iterate.pi.argmax(-1), best.pi.argmax(-1))
        close(iterate.q, best.q, 1e-10)


@pytest.mark.parametrize("where", [(0, 1), (3, 2)])
def test_elsewhere_every_action_has_a_positive_probability(where: tuple[int, int]) -> None:
    q = value_iteration(MDP).q.clone()
    q[where] += 1e-2
    wrong = virel_iteration(MDP, 5e4, q0=q, num_iterations=0)
    assert wrong.tau > 0 and (wrong.pi > 0).all()
    # By hand: the entry itself is off by 1e-2, and so are the backups of a state whose maximum it is.
    error = MDP.backup(q.amax(-1)) - q
    assert wrong.tau == pytest.approx(2.5e4 * error.square().mean().item())


def test_the_error_counts_states_by_their_weight() -> None:
    error = MDP.backup(Q0.amax(-1)) - Q0
    for exponent in (1.0, 2.0):
        got = virel_iteration(MDP, 0.7, exponent=exponent, q0=Q0, state_distribution=D, num_iterations=0).tau
        expected = 0.7 / exponent * (D @ error.abs().pow(exponent).mean(-1))
        assert got == pytest.approx(expected.item(), rel=1e-12)


def test_two_steps_written_out() -> None:
    """The error of new values is that under the policy which made them, not under the one it gives."""
    first, second = virel_iteration(MDP, 0.7, q0=Q0, num_iterations=1, return_iterates=True).iterates
    tau = 0.35 * (MDP.r + 0.9 * MDP.P @ Q0.amax(-1) - Q0).square().mean()
    pi = (Q0 / tau).softmax(-1)
    q = MDP.r + 0.9 * MDP.P @ (pi * Q0).sum(-1)
    next_tau = 0.35 * (MDP.r + 0.9 * MDP.P @ (pi * q).sum(-1) - q).square().mean()
    assert (first.tau, second.tau) == (pytest.approx(tau.item()), pytest.approx(next_tau.item()))
    close(first.pi, pi, 1e-12)
    close(second.q, q, 1e-12)
    close(second.pi, (q / next_tau).softmax(-1), 1e-12)


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_objective_is_log_partition_minus_kl_minus_entropy_of_the_states(tau: float) -> None:
    pi = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).softmax(-1)
    log_joint = (D.unsqueeze(-1) * pi).log().flatten()
    log_p = (Q0 / tau).flatten().log_softmax(-1)
    log_partition = (Q0 / tau).flatten().logsumexp(-1)
    expected = log_partition - kl_divergence(log_joint, log_p) - policy_entropy(D)
    assert virel_objective(Q0, pi, tau, D) == pytest.approx(expected.item(), abs=1e-10)


def test_the_boltzmann_policy_maximizes_the_objective() -> None:
    tau, logits = 0.6, torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    best = soft_policy(Q0, tau)
    at_best = virel_objective(Q0, best, tau, D)
    assert at_best == pytest.approx((D @ soft_value(Q0 / tau, 1.0)).item(), abs=1e-10)
    for size in (1e-2, 0.3, 3.0):
        assert virel_objective(Q0, (best.log() + size * logits).softmax(-1), tau, D) < at_best
    with pytest.raises(ValueError, match="tau must be > 0"):
        virel_objective(Q0, best, 0.0, D)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize(("beta_scale", "exponent"), [(0.1, 1.0), (1.0, 1.0), (0.1, 2.0), (5.0, 2.0)])
def test_the_temperature_anneals_by_itself_and_the_policy_becomes_greedy(
    mdp: TabularMDP, beta_scale: float, exponent: float
) -> None:
    best = value_iteration(mdp)
    q0 = Q0 if mdp is MDP else None
    run = virel_iteration(mdp, beta_scale, exponent=exponent, q0=q0, return_iterates=True)
    taus = [iterate.tau for iterate in run.iterates]
    assert taus[0] > 0.01 and max(taus[len(taus) // 2 :]) < 0.1 * taus[0] and taus[-1] <= 1e-10
    close(run.q, best.q, 1e-9)
    value_of_its_policy = policy_evaluation(mdp, run.pi)
    close(value_of_its_policy.v, best.v, 1e-9)


@pytest.mark.parametrize(("exponent", "k"), [(1.0, 7.0), (2.0, 7.0), (2.0, 0.1)])
def test_rewards_k_times_as_large_scale_temperature_and_values_by_k(exponent: float, k: float) -> None:
    """With p = 1 as it stands, with p = 2 if c is divided by k; the policies are the same, iterate by iterate."""
    scaled = TabularMDP(MDP.P, k * MDP.r, MDP.gamma)
    options = {"exponent": exponent, "num_iterations": 15, "return_iterates": True}
    ours = virel_iteration(MDP, 0.8, q0=Q0, **options)
    theirs = virel_iteration(scaled, 0.8 / k ** (exponent - 1), q0=k * Q0, **options)
    for one, other in zip(ours.iterates, theirs.iterates, strict=True):
        assert other.tau == pytest.approx(k * one.tau, rel=1e-9)
        close(other.q, k * one.q, 1e-9 * max(1, k))
        close(other.pi, one.pi, 1e-9)


def test_too_large_a_scale_feeds_on_its_own_errors() -> None:
    """Nearly uniform policies make the errors that keep them uniform: annealing is no law, it needs a moderate c."""
    run = virel_iteration(MDP, 50.0, exponent=1.0, q0=Q0, num_iterations=600, return_iterates=True)
    assert sum(iterate.tau > 1 for iterate in run.iterates[-100:]) > 20
    assert (run.q - value_iteration(MDP).q).abs().max() > 1


def test_a_fixed_temperature_ends_at_the_softmax_operator() -> None:
    """``pi = softmax(Q^pi / tau)``, where Q^pi has no entropy term: worse than the optimum, and not the soft one."""
    run = virel_iteration(MDP, 1.0, tau=0.5)
    assert run.tau == 0.5
    close(run.pi, soft_policy(run.q, 0.5), 1e-12)
    close(run.q, policy_evaluation(MDP, run.pi).q, 1e-9)
    assert (run.q < value_iteration(MDP).q - 1e-3).all()


def test_it_goes_on_while_the_temperature_changes() -> None:
    """At the values of the first policy nothing moves but the temperature: to 0, and then all does."""
    q0 = virel_iteration(MDP, 1.0, tau=0.1, tol=1e-14).q
    error = MDP.backup(q0.amax(-1)) - q0
    run = virel_iteration(MDP, (0.1 / error.abs().mean()).item(), exponent=1.0, q0=q0, return_iterates=True)
    first, second = run.iterates[:2]
    close(second.q, first.q, 1e-13)
    assert (first.tau, second.tau) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))
    close(run.q, value_iteration(MDP).q, 1e-9)


def test_terminal_states_count_for_nothing() -> None:
    run = virel_iteration(GRID, 1.0, num_iterations=3)
    assert (run.q[GRID.terminal] == 0).all() and (run.v[GRID.terminal] == 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta_scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        ({"beta_scale": 1.0, "exponent": 0.0}, "exponent must be a finite number >= 1, got 0.0"),
        ({"beta_scale": 1.0, "tau": -1.0}, "tau must be a finite temperature >= 0 or None, got -1.0"),
        ({"beta_scale": 1.0, "tol": 0.0}, "tol must be > 0"),
        ({"beta_scale": 1.0, "num_iterations": -1}, "num_iterations must be >= 0"),
        ({"beta_scale": 1.0, "state_distribution": math.pi * D}, "start must be a probability distribution"),
    ],
)
def test_bad_input(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        virel_iteration(MDP, **kwargs)
