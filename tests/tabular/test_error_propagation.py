"""Errors in exact updates: only their average reaches the values, and the bounds hold."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from torchrl_reg.tabular import (
    TabularMDP,
    averaged_errors,
    implicit_q_iteration,
    mirror_descent_value_iteration,
    munchausen_value_iteration,
    policy_evaluation,
    policy_loss_bounds,
    policy_losses,
    random_mdp,
    soft_value_iteration,
    value_iteration,
)

close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-12)
TAU, UPDATES = 0.5, 40


def errors(seed: int, kind: str = "independent") -> Tensor:
    drawn = torch.randn(UPDATES, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    sign = (-1.0) ** torch.arange(UPDATES).view(-1, 1, 1)
    return {"independent": drawn, "alternating": sign * drawn[:1], "constant": drawn[:1].expand_as(drawn)}[kind]


def settings(noise: Tensor) -> dict:
    return {"num_iterations": len(noise), "noise": lambda k: noise[k], "return_iterates": True}


def test_averages_by_hand() -> None:
    found = torch.tensor([4.0, 2.0, -3.0]).view(3, 1, 1)
    assert averaged_errors(found, 0.0).flatten().tolist() == [4, 2, -3]
    assert averaged_errors(found, 0.5).flatten().tolist() == [2, 2, -0.5]
    assert averaged_errors(found, 1.0).flatten().tolist() == [4, 3, 1]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_implicit_q_is_soft_value_iteration_with_averaged_errors(alpha: float) -> None:
    """The identity in the docstring; M-VI and IQ with the same errors have the same policies."""
    mdp, noise, own = random_mdp(6, 4, 0.9, seed=1), errors(0), (1 - alpha) * TAU
    first = torch.full_like(mdp.r, alpha * TAU * math.log(4))
    md = mirror_descent_value_iteration(mdp, alpha * TAU, own, q0=first, **settings(noise)).iterates
    for solver in (implicit_q_iteration, munchausen_value_iteration):
        for one, other in zip(md, solver(mdp, TAU, alpha, **settings(noise)).iterates, strict=True):
            close(one.pi, other.pi)
    h, averaged, transient = (1 - alpha) * first, averaged_errors(noise, alpha), 1.0
    rest = h - mdp.backup(torch.full((6,), own * math.log(4), dtype=torch.float64))
    for k in range(UPDATES):
        transient *= alpha
        expected = mdp.backup(own * (h / own).logsumexp(-1)) + averaged[k] + transient * rest
        h = alpha * h + (1 - alpha) * md[k + 1].q
        close(h, expected)
        close(md[k + 1].pi, (h / own).softmax(-1))


@pytest.mark.parametrize("kind", ["independent", "alternating", "constant"])
def test_policies_lose_no_more_than_the_bounds(kind: str) -> None:
    for seed in range(3):
        for gamma in (0.3, 0.9):
            mdp, noise = random_mdp(6, 4, gamma, seed=seed), errors(seed, kind)
            for tau, alpha in ((0.0, 0.0), (TAU, 0.0), (TAU, 0.9), (TAU, 1.0), (2.0, 1.0)):
                found = munchausen_value_iteration(mdp, tau, alpha, **settings(noise))
                losses = policy_losses(mdp, found.iterates, (1 - alpha) * tau)[1:]
                bounds = policy_loss_bounds(mdp, noise, tau, alpha)
                assert (losses >= -1e-12).all() and (losses <= bounds + 1e-12).all()
                assert losses.max() > 1e-3 and bounds.shape == (UPDATES,)


def test_losses_are_distances_to_the_soft_optimum() -> None:
    for tau in (0.0, 0.05, 2.0):
        mdp = random_mdp(6, 4, 0.95, seed=5)
        found = soft_value_iteration(mdp, tau, num_iterations=3, return_iterates=True)
        best = soft_value_iteration(mdp, tau).q
        expected = [(best - policy_evaluation(mdp, each.pi, tau).q).abs().max() for each in found.iterates]
        close(policy_losses(mdp, found.iterates, tau), torch.stack(expected), atol=1e-8)  # value iteration stops there


def test_bounds_by_hand() -> None:
    """One state and action, reward 0: q* = 0, h_0 = 0; errors 4, 2, -3, gamma .5. At alpha = 1 also r = 1, tau = 2."""
    noise = torch.tensor([4.0, 2.0, -3.0]).view(3, 1, 1)
    still = TabularMDP(torch.ones(1, 1, 1), torch.zeros(1, 1), 0.5)
    assert policy_loss_bounds(still, noise, 0.0, 0.0).tolist() == [2 * 4, 2 * (2 + 2), 2 * (2 + 3)]
    assert policy_loss_bounds(still, noise, 0.3, 0.5).tolist() == [2 * 2, 2 * (1 + 2), 2 * (1.5 + 0.5)]
    two = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[1.0, -1.0]]), 0.5)
    largest = 16 * (1 + 2 * math.log(2))
    expected = [4 * size + largest / k for k, size in ((1, 4), (2, 3), (3, 1))]
    close(policy_loss_bounds(two, noise.expand(3, 1, 2), 2.0, 1.0), torch.tensor(expected, dtype=torch.float64))
    # alpha .5, tau 2, so tau' = 1: h_0 = .5 ln 2 everywhere, T of "no values" r + .5 ln 2, and v* = 2 ln(e + 1 / e).
    start, v = 0.5 * math.log(2), 2 * math.log(math.e + 1 / math.e)
    distance, rest = max(abs(start - 1 - 0.5 * v), abs(start + 1 - 0.5 * v)), 1.0
    found = policy_loss_bounds(two, noise.expand(3, 1, 2), 2.0, 0.5)[0].item()
    assert found == pytest.approx(2 * (0.5 * distance + 2 + 0.5 * rest))


def test_errors_that_cancel_cost_munchausen_nothing_and_value_iteration_for_ever() -> None:
    mdp, noise = random_mdp(6, 4, 0.9, seed=1), 2 * errors(0, "alternating")
    long = noise[:2].repeat(1000, 1, 1)
    lost = [
        policy_losses(mdp, found.iterates[-2:])
        for found in (
            munchausen_value_iteration(mdp, TAU, 1.0, **settings(long)),
            value_iteration(mdp, **settings(long)),
        )
    ]
    assert lost[0].max() < 1e-9 < 0.1 < lost[1].max()
