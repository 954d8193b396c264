"""Munchausen bonus and advantage-learning gaps: literal numbers and the shapes they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchrl_reg.functional import (
    advantage_gap,
    munchausen_bonus,
    persistent_advantage_gap,
    scaled_log_policy,
)
from torchrl_reg.functional.munchausen import action_index, taken

INF = float("inf")
Q = torch.tensor([[1.0, 4.0, 2.0], [0.0, -1.0, -5.0]])
NEXT_Q = torch.tensor([[3.0, 2.0, 2.5], [7.0, 8.0, 6.0]])
ACTION = torch.tensor([2, 1])


def test_bonus_clips_before_alpha():
    tau_log_pi_a = torch.tensor([-0.1, -0.3, -2.0])
    expected = torch.tensor([-0.05, -0.15, -0.15])
    torch.testing.assert_close(munchausen_bonus(tau_log_pi_a, 0.5, -0.3), expected)
    assert munchausen_bonus(torch.tensor(0.2), 0.5, -0.3) == 0.0  # rounding never pays a bonus
    unclipped = torch.tensor([-0.05, -0.15, -1.0])
    torch.testing.assert_close(munchausen_bonus(tau_log_pi_a, 0.5, None), unclipped)


@pytest.mark.parametrize("alpha", [0.5, torch.tensor(0.5)])
def test_bonus_takes_schedulable_tensors(alpha):
    tau_log_pi_a = torch.tensor([-0.1, -2.0])
    expected = torch.tensor([-0.05, -0.15])
    clip_min = torch.tensor(-0.3, dtype=torch.float64)
    torch.testing.assert_close(munchausen_bonus(tau_log_pi_a, alpha, clip_min), expected)


def test_bonus_acts_on_the_scaled_log_policy_not_on_the_log_policy():
    # tau ln pi = -0.02 is inside the clip at -1 although ln pi = -2 is not.
    q = torch.tensor([[0.0, 0.02]], dtype=torch.float64)
    tau_log_pi = scaled_log_policy(q, 0.01)[0, 0]
    expected = 0.9 * 0.01 * math.log(1.0 / (1.0 + math.exp(2.0)))
    assert munchausen_bonus(tau_log_pi, 0.9, -1.0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("clip_min", [0.5, math.nan])
def test_positive_clip_is_refused(clip_min):
    with pytest.raises(ValueError, match=r"clip_min must be <= 0 or None"):
        munchausen_bonus(torch.zeros(2), 0.9, clip_min)


def test_advantage_gap():
    assert advantage_gap(Q, ACTION).tolist() == [2.0, 1.0]
    assert advantage_gap(Q, Q.argmax(-1)).tolist() == [0.0, 0.0]
    batched = advantage_gap(Q.expand(5, 2, 3), ACTION.expand(5, 2))
    assert batched.shape == (5, 2) and batched[3].tolist() == [2.0, 1.0]


def test_bonus_tends_to_minus_alpha_times_the_gap():
    tau_log_pi_a = scaled_log_policy(Q, 1e-6).gather(-1, ACTION.unsqueeze(-1)).squeeze(-1)
    expected = -0.9 * advantage_gap(Q, ACTION)
    torch.testing.assert_close(munchausen_bonus(tau_log_pi_a, 0.9, None), expected)


def test_persistent_gap_is_the_smaller_one_unless_terminated():
    going_on = torch.tensor([False, False])
    # Gaps here: 2 and 1; at the next state: 3 - 2.5 and 8 - 8.
    assert persistent_advantage_gap(Q, NEXT_Q, ACTION, going_on).tolist() == [0.5, 0.0]
    ended = torch.tensor([True, False])
    assert persistent_advantage_gap(Q, NEXT_Q, ACTION, ended).tolist() == [2.0, 0.0]
    garbage = NEXT_Q.clone()
    garbage[0] = math.nan
    assert persistent_advantage_gap(Q, garbage, ACTION, ended).tolist() == [2.0, 0.0]


def test_persistent_gap_is_never_larger():
    generator = torch.Generator().manual_seed(0)
    q, next_q = torch.randn(2, 100, 4, generator=generator)
    action = torch.randint(4, (100,), generator=generator)
    gap = persistent_advantage_gap(q, next_q, action, torch.zeros(100, dtype=torch.bool))
    assert (gap >= 0).all() and (gap <= advantage_gap(q, action)).all()


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"action must have shape \(2,\)"):
        advantage_gap(Q, ACTION.unsqueeze(-1))
    with pytest.raises(ValueError, match=r"terminated must have the shape of action"):
        persistent_advantage_gap(Q, NEXT_Q, ACTION, torch.zeros(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"next_q that of q"):
        persistent_advantage_gap(Q, NEXT_Q[:1], ACTION, torch.zeros(2, dtype=torch.bool))


def test_half_precision_gap_is_float32():
    assert advantage_gap(Q.bfloat16(), ACTION).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (4, 1)])
def test_every_way_to_store_an_action_is_the_same_index(shape: tuple[int, ...]) -> None:
    index = torch.randint(3, shape, generator=torch.Generator().manual_seed(0))
    one_hot = nn.functional.one_hot(index, 3)
    q = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(1))
    q = torch.where(one_hot.bool(), q, -INF)  # all other actions are forbidden
    stored = [(index, "categorical"), (index.unsqueeze(-1), "categorical")]
    stored += [(one_hot, "one_hot"), (one_hot.bool(), "one_hot"), (one_hot.float(), "one_hot")]
    for action, space in stored:
        assert torch.equal(action_index(action, space, len(shape)), index)
        assert torch.equal(taken(q, action_index(action, space, len(shape))), q.amax(-1))
