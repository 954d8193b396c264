"""The action prior and its inverse temperature: floored, exact, and assigned in place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from torchrl_reg.regularizers import ActionPrior

RHO = [0.7, 0.2, 0.1]


def test_a_zero_is_floored_and_the_rest_normalized() -> None:
    prior = ActionPrior(3, probabilities=[0.5, 0.5, 0.0], floor=1e-3)
    rho = prior.log_prior.exp()
    torch.testing.assert_close(rho, torch.tensor([0.5, 0.5, 1e-3], dtype=torch.float64) / 1.001)
    prior.assign(torch.tensor([1.0, 0.0, 0.0]))
    assert prior.log_prior.isfinite().all() and math.isclose(float(prior.log_prior.exp().sum()), 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_prior_keeps_its_precision(dtype: torch.dtype) -> None:
    holder = nn.ModuleList([nn.Linear(2, 2), ActionPrior(3, probabilities=RHO, beta=0.1)]).to(dtype)
    assert holder[0].weight.dtype == dtype
    torch.testing.assert_close(holder[1].log_prior.exp(), torch.tensor(RHO, dtype=torch.float64), rtol=0, atol=1e-15)
    assert float(holder[1].beta) == 0.1


def test_the_greedy_action_of_a_uniform_prior_is_that_of_q() -> None:
    q = 1e-3 * torch.randn(2_000, 6)
    for beta in (1e-3, 1.0, 1e3):
        assert torch.equal(ActionPrior(6, beta=beta).greedy(q), q.argmax(-1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_actions": 0}, "num_actions must be an integer >= 1, got 0"),
        ({"probabilities": [0.5, 0.5]}, "a probability for each of 3 actions"),
        ({"probabilities": [[0.5, 0.5, 0.0]]}, "a probability for each of 3 actions"),
        ({"probabilities": [1.2, -0.1, -0.1]}, "must not have negative probabilities"),
        ({"probabilities": [0.5, 0.4, 0.2]}, "must sum to one"),
        ({"beta": 0}, "beta must be a finite number > 0"),
        ({"beta": float("nan")}, "beta must be a finite number > 0"),
        ({"floor": 0.0}, r"floor must be in \(0, 1 / 3\), got 0.0"),
        ({"floor": 0.4}, "floor must be in"),
    ],
)
def test_bad_priors(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionPrior(**{"num_actions": 3} | kwargs)


def test_both_are_assigned_not_replaced() -> None:
    prior = ActionPrior(3)
    with pytest.raises(AttributeError, match="prior.assign"):
        prior.log_prior = torch.zeros(3)
    with pytest.raises(ValueError, match="beta must be"):
        prior.beta = -1.0
