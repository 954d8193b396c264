"""E2W: its weight, its mixture, and untried actions."""

from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import e2w_exploration, e2w_policy, soft_policy

Q = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64)


def test_the_weight_is_that_of_the_formula_once_it_is_a_probability() -> None:
    visits = torch.tensor([0.0, 1.0, 3.0, 4.0, 100.0, 1e6], dtype=torch.float64)
    lam = e2w_exploration(visits, 4, 0.4)
    expected = [1.0, 1.0, 1.0, *(1.6 / math.log(n + 1) for n in (4, 100, 1e6))]  # 1.6 / ln 4 is still more than one
    torch.testing.assert_close(lam, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_the_policy_is_the_mixture_of_the_visits_of_all_actions() -> None:
    lam = 1.6 / math.log(51)
    pi = (1 - lam) * soft_policy(Q, 0.5) + lam / 4
    for visits in (torch.tensor(50), torch.tensor([20, 5, 24, 1])):
        torch.testing.assert_close(e2w_policy(Q, visits, 0.5, 0.4), pi, rtol=0, atol=1e-12)
    batch = e2w_policy(Q.expand(3, 4), torch.tensor([0, 50, 10**9]), 0.5, 0.4)
    torch.testing.assert_close(batch[:2], torch.stack((torch.full_like(Q, 0.25), pi)), rtol=0, atol=1e-12)
    torch.testing.assert_close(batch.sum(-1), torch.ones(3, dtype=torch.float64))


def test_untried_actions_are_explored_only() -> None:
    q = Q.clone()
    q[1] = -math.inf
    pi = e2w_policy(q, torch.tensor(50), 0.5, 0.4)
    assert pi[1].item() == pytest.approx(0.4 / math.log(51)) and pi.sum().item() == pytest.approx(1)
    nothing = e2w_policy(torch.full((2, 4), -math.inf), torch.tensor([0, 7]), 0.5, 0.4)
    assert torch.equal(nothing, torch.full((2, 4), 0.25))
