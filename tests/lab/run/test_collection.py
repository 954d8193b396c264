"""Frames of a batch, the choice of its collector, and the returns of its episodes."""

from __future__ import annotations

import pytest
import tiny_dqn
import torch
from tensordict import TensorDict

from torchrl_reg.lab import UserError
from torchrl_reg.lab.run.collection import make_collector, truncate_episodes
from torchrl_reg.lab.run.run import finished_returns


def _collector(frames_per_batch: int, frames_per_step: int = 4):
    env, cpu = tiny_dqn.make_env(tiny_dqn.EnvSettings("CartPole-v1"), 3), torch.device("cpu")
    frames = {"frames_per_batch": frames_per_batch, "frames_per_step": frames_per_step}

    def policy(state):
        return state.set("action", torch.ones(state.batch_size, dtype=torch.long))

    return make_collector(env, policy, **frames, device=cpu, storing_device=cpu, track_trajectories=False)


def test_a_batch_holds_the_frames_asked_for():
    assert next(iter(_collector(24))).batch_size == (3, 2)  # 3 environments x 2 steps x 4 frames
    for frames in (0, -12, 13):
        with pytest.raises(UserError, match=rf"a positive multiple of 12 .* got {frames}\.$"):
            _collector(frames)


def test_returns_of_finished_episodes_only():
    batch = next(iter(_collector(3 * 30, 1)))
    returns = finished_returns(batch)
    assert len(returns) == batch["next", "done"].sum() > 3
    assert all(8 <= value <= 11 for value in returns)  # always to the right
    # Whole episodes are what lies before the last end of each environment.
    ends = [torch.where(done.squeeze(-1))[0][-1].item() + 1 for done in batch["next", "done"]]
    assert sum(returns) == sum(ends)


def test_a_cut_marks_the_last_step_as_truncated_and_not_as_terminated():
    flags = {key: torch.zeros(2, 3, 1, dtype=torch.bool) for key in ("done", "truncated", "terminated")}
    batch = TensorDict({"next": flags}, [2, 3])
    for running in (2, 0):  # episodes that end by it
        assert truncate_episodes(batch) == running
        for key, expected in (("done", True), ("truncated", True), ("terminated", False)):
            assert batch["next", key].squeeze(-1).tolist() == [[False, False, expected]] * 2
