"""VIREL in tables: the temperature is the Bellman error, and anneals by itself."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from torchrl_reg.functional import kl_divergence, policy_entropy, soft_policy
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
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_error_counts_states_by_their_weight(exponent: float) -> None:
    error = MDP.backup(Q0.amax(-1)) - Q0
    got = virel_iteration(MDP, 0.7, exponent=exponent, q0=Q0, state_distribution=D, num_iterations=0).tau
    assert got == pytest.approx((0.7 / exponent * (D @ error.abs().pow(exponent).mean(-1))).item(), rel=1e-12)


def test_two_steps_written_out() -> None:
    """The error of new values is that under the policy which made them, not under the one it gives."""
    first, second = virel_iteration(MDP, 0.7, q0=Q0, num_iterations=1, return_iterates=True).iterates
    tau = 0.35 * (MDP.r + 0.9 * MDP.P @ Q0.amax(-1) - Q0).square().mean()
    pi = (Q0 / tau).softmax(-1)
    q = MDP.r + 0.9 * MDP.P @ (pi * Q0).sum(-1)
    next_tau = 0.35 * (MDP.r + 0.9 * MDP.P @ (pi * q).sum(-1) - q).square().mean()
    assert (first.tau, second.tau) == (pytest.approx(tau.item()), pytest.approx(next_tau.item()))
    close(first.pi, pi, atol=1e-12)
    close(second.q, q, atol=1e-12)
    close(second.pi, (q / next_tau).softmax(-1), atol=1e-12)


@pytest.mark.parametrize("tau", [0.3, 2.0])
def test_the_objective_is_log_partition_minus_kl_minus_entropy_of_the_states(tau: float) -> None:
    pi = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).softmax(-1)
    log_p = (Q0 / tau).flatten().log_softmax(-1)
    kl = kl_divergence((D.unsqueeze(-1) * pi).log().flatten(), log_p)
    expected = (Q0 / tau).flatten().logsumexp(-1) - kl - policy_entropy(D)
    assert virel_objective(Q0, pi, tau, D) == pytest.approx(expected.item(), abs=1e-10)
    with pytest.raises(ValueError, match="tau must be > 0"):
        virel_objective(Q0, pi, 0.0, D)


@pytest.mark.parametrize("mdp", [MDP, GRID], ids=["random", "grid"])
@pytest.mark.parametrize(("beta_scale", "exponent"), [(0.1, 1.0), (1.0, 1.0), (0.1, 2.0), (5.0, 2.0)])
def test_the_temperature_anneals_by_itself_and_the_policy_becomes_greedy(
    mdp: TabularMDP, beta_scale: float, exponent: float
) -> None:
    best = value_iteration(mdp)
    run = virel_iteration(mdp, beta_scale, exponent=exponent, q0=Q0 if mdp is MDP else None, return_iterates=True)
    taus = [iterate.tau for iterate in run.iterates]
    assert taus[0] > 0.01 and max(taus[len(taus) // 2 :]) < 0.1 * taus[0] and taus[-1] <= 1e-10
    close(run.q, best.q)
    close(run.v, best.v)
    close(policy_evaluation(mdp, run.pi).v, best.v)


def test_a_fixed_temperature_ends_at_the_softmax_operator() -> None:
    """``pi = softmax(Q^pi / tau)``, where Q^pi has no entropy term: worse than the optimum, and not the soft one."""
    run = virel_iteration(MDP, 1.0, tau=0.5)
    assert run.tau == 0.5
    close(run.pi, soft_policy(run.q, 0.5), atol=1e-12)
    close(run.q, policy_evaluation(MDP, run.pi).q)
    assert (run.q < value_iteration(MDP).q - 1e-3).all()


def test_it_goes_on_while_the_temperature_changes() -> None:
    """At the values of the first policy nothing moves but the temperature: to 0, and then all does."""
    q0 = virel_iteration(MDP, 1.0, tau=0.1, tol=1e-14).q
    error = MDP.backup(q0.amax(-1)) - q0
    run = virel_iteration(MDP, (0.1 / error.abs().mean()).item(), exponent=1.0, q0=q0, return_iterates=True)
    first, second = run.iterates[:2]
    close(second.q, first.q, atol=1e-13)
    assert (first.tau, second.tau) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12))
    close(run.q, value_iteration(MDP).q)


BAD = [
    ({"beta_scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
    ({"exponent": 0.0}, "exponent must be a finite number >= 1, got 0.0"),
    ({"tau": -1.0}, "tau must be a finite temperature >= 0 or None, got -1.0"),
    ({"tol": 0.0}, "tol must be > 0"),
    ({"state_distribution": math.pi * D}, "start must be a probability distribution"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_input(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        virel_iteration(MDP, **{"beta_scale": 1.0, **arguments})
