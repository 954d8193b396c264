from __future__ import annotations

import math

import pytest
import torch

from torchrl_reg.functional import lambda_return, q_lambda_return

REWARD = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
NEXT_VALUE = torch.tensor([10.0, 20.0, 0.0, 40.0], dtype=torch.float64)  # an episode ends with step 2
CORRECTION = torch.tensor([-99.0, -1.0, -2.0, -3.0], dtype=torch.float64)  # the first belongs to no earlier return
ENDS = torch.tensor([False, False, True, False])


def test_a_rollout_by_hand():
    # From behind: 8 + 40/2; 4, the end; 2 + (20 + (4 - 20 + 2)/4)/2; 1 + (10 + (10.25 - 10 + 1)/4)/2.
    returns = q_lambda_return(REWARD, NEXT_VALUE, CORRECTION, ENDS, gamma=0.5, lmbda=0.25)
    assert returns.tolist() == [6.15625, 10.25, 4.0, 28.0]


def test_a_later_episode_leaves_the_returns_of_earlier_ones_alone():
    """Whatever it holds: NaN rewards, values, corrections; and what follows the last step belongs to nobody."""
    clean = q_lambda_return(REWARD, NEXT_VALUE, CORRECTION, ENDS, gamma=0.5, lmbda=0.25)
    for bad in (math.nan, math.inf):
        reward, value, correction = REWARD.clone(), NEXT_VALUE.clone(), CORRECTION.clone()
        for each in (reward, value, correction):
            each[3:] = bad
        returns = q_lambda_return(reward, value, correction, ENDS, gamma=0.5, lmbda=0.25)
        assert returns[:3].tolist() == clean[:3].tolist() and not returns[3].isfinite()


@pytest.mark.parametrize("lmbda", [0.0, 0.65, 1.0])
def test_both_forms_of_the_return_are_one(lmbda):
    draw = torch.Generator().manual_seed(0)
    reward, value, correction = torch.randn(3, 5, 9, generator=draw, dtype=torch.float64)
    ends = torch.rand(5, 9, generator=draw) < 0.3
    columns = (x.unsqueeze(-1) for x in (reward, value, ends))
    explicit = lambda_return(*columns, gamma=0.9, lmbda=lmbda, action_cost=correction.unsqueeze(-1)).squeeze(-1)
    found = q_lambda_return(reward, value, correction, ends, gamma=0.9, lmbda=torch.tensor(lmbda, dtype=torch.float64))
    torch.testing.assert_close(found, explicit, rtol=1e-14, atol=1e-14)
