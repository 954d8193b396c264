"""Gaps, Munchausen bonus and advantage learning, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchrl_reg.functional import action_gap, advantage_gap, munchausen_bonus, persistent_advantage_gap
from torchrl_reg.functional.munchausen import action_index, taken

Q = torch.tensor([[1.0, 4.0, 2.0], [0.0, -1.0, -5.0]])
NEXT_Q = torch.tensor([[3.0, 2.0, 2.5], [7.0, 8.0, 6.0]])
ACTION = torch.tensor([2, 1])


@pytest.mark.parametrize("alpha", [0.5, torch.tensor(0.5)])
@pytest.mark.parametrize("clip_min", [-0.3, torch.tensor(-0.3, dtype=torch.float64), None])
def test_bonus_clips_before_alpha(alpha, clip_min):
    tau_log_pi_a = torch.tensor([-0.1, -0.3, -2.0, 0.2])
    lowest = -1.0 if clip_min is None else -0.15
    expected = torch.tensor([-0.05, -0.15, lowest, 0.1])  # ln(pi / rho) and a density's logarithm may be positive
    torch.testing.assert_close(munchausen_bonus(tau_log_pi_a, alpha, clip_min), expected)


def test_gaps_by_hand():
    q = torch.tensor([[1.0, 4.0, 2.5], [3.0, 3.0, 0.0], [-math.inf, -1.0, -2.0]])
    assert action_gap(q.expand(2, 3, 3)).tolist() == [[1.5, 0.0, 1.0]] * 2
    assert advantage_gap(Q.expand(5, 2, 3), ACTION.expand(5, 2)).tolist() == [[2.0, 1.0]] * 5
    assert advantage_gap(Q, Q.argmax(-1)).tolist() == [0.0, 0.0]


def test_persistent_gap_is_the_smaller_one_unless_terminated():
    # Gaps here: 2 and 1; at the next state: 3 - 2.5 and 8 - 8, or 9 times that.
    going_on, ended = torch.tensor([False, False]), torch.tensor([True, False])
    assert persistent_advantage_gap(Q, NEXT_Q, ACTION, going_on).tolist() == [0.5, 0.0]
    assert persistent_advantage_gap(Q, 9 * NEXT_Q, ACTION, going_on).tolist() == [2.0, 0.0]
    garbage = NEXT_Q.clone()
    garbage[0] = math.nan
    assert persistent_advantage_gap(Q, garbage, ACTION, ended).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (4, 1)])
def test_every_way_to_store_an_action_is_the_same_index(shape: tuple[int, ...]) -> None:
    index = torch.randint(3, shape, generator=torch.Generator().manual_seed(0))
    one_hot = nn.functional.one_hot(index, 3)
    q = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1))
    q = torch.where(one_hot.bool(), q, -math.inf)  # all other actions are forbidden
    stored = [(index, "categorical"), (index.unsqueeze(-1), "categorical")]
    stored += [(one_hot, "one_hot"), (one_hot.bool(), "one_hot"), (one_hot.float(), "one_hot")]
    for action, space in stored:
        assert torch.equal(action_index(action, space, len(shape)), index)
        assert torch.equal(taken(q, action_index(action, space, len(shape))), q.amax(-1))
