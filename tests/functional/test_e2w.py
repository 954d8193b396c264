"""E2W: its weight, its limits and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import e2w_exploration, e2w_policy, soft_policy

Q = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64)


def test_the_weight_is_that_of_the_formula_once_it_is_a_probability() -> None:
    visits = torch.tensor([0.0, 1.0, 3.0, 4.0, 100.0, 1e6], dtype=torch.float64)
    lam = e2w_exploration(visits, 4, 0.4)
    assert lam[:3].tolist() == [1.0, 1.0, 1.0]  # 1.6 / ln 4 is still more than one
    for n, weight in zip(visits[3:].tolist(), lam[3:].tolist(), strict=True):
        assert weight == pytest.approx(0.4 * 4 / math.log(n + 1), rel=1e-12) and weight < 1


def test_the_policy_is_the_mixture() -> None:
    expected = 0.4 / math.log(51) * 4
    pi = e2w_policy(Q, torch.tensor(50), 0.5, 0.4)
    assert torch.allclose(pi, (1 - expected) * soft_policy(Q, 0.5) + expected / 4, atol=1e-12)
    by_action = e2w_policy(Q, torch.tensor([20, 5, 24, 1]), 0.5, 0.4)
    assert torch.equal(by_action, pi)
    batch = e2w_policy(Q.expand(3, 4), torch.tensor([0, 50, 10**9]), 0.5, 0.4)
    assert torch.equal(batch[0], torch.full((4,), 0.25, dtype=torch.float64)) and torch.equal(batch[1], pi)
    assert torch.allclose(batch.sum(-1), torch.ones(3, dtype=torch.float64))


def test_untried_actions_are_explored_only() -> None:
    q = Q.clone()
    q[1] = -math.inf
    pi = e2w_policy(q, torch.tensor(50), 0.5, 0.4)
    assert pi[1].item() == pytest.approx(0.4 / math.log(51)) and pi.sum().item() == pytest.approx(1)
    nothing = e2w_policy(torch.full((2, 4), -math.inf), torch.tensor([0, 7]), 0.5, 0.4)
    assert torch.equal(nothing, torch.full((2, 4), 0.25))


def test_greedy_and_extreme_temperatures() -> None:
    lam = 0.4 * 4 / math.log(51)
    for tau in (0.0, 1e-30):
        pi = e2w_policy(1e4 * Q, torch.tensor(50), tau, 0.4)
        assert pi[2].item() == pytest.approx(1 - lam + lam / 4)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, math.inf, math.nan])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be a finite number > 0, got"):
        e2w_policy(Q, torch.tensor(3), 0.5, epsilon)


def test_visits_must_fit() -> None:
    with pytest.raises(ValueError, match=r"visits must have shape \[\] or \[4\], got \[3\]"):
        e2w_policy(Q, torch.ones(3), 0.5, 0.1)
