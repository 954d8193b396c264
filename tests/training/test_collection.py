from __future__ import annotations

import pytest
import tiny_dqn
import torch
from tensordict import TensorDict

from torchrl_reg.training import ConfigError
from torchrl_reg.training.loop.collection import cut_episodes, make_collector
from torchrl_reg.training.run.run import finished_returns


def _env(num_envs: int = 3):
    return tiny_dqn.make_env(tiny_dqn.EnvSettings("CartPole-v1"), num_envs)


def _collector(frames_per_batch: int, frames_per_step: int = 1):
    env = _env()

    def policy(state):
        return state.set("action", torch.ones(state.batch_size, dtype=torch.long))

    return make_collector(
        env,
        policy,
        frames_per_batch=frames_per_batch,
        frames_per_step=frames_per_step,
        device=torch.device("cpu"),
        storing_device=torch.device("cpu"),
        track_trajectories=False,
    )


def test_a_batch_holds_the_frames_asked_for():
    batch = next(iter(_collector(24, frames_per_step=4)))
    assert batch.batch_size == (3, 2)  # 3 environments x 2 steps x 4 frames


@pytest.mark.parametrize("frames", [0, -12, 13])
def test_frames_that_do_not_fit_the_environments(frames):
    with pytest.raises(ConfigError, match=rf"a positive multiple of 12 .* got {frames}\.$"):
        _collector(frames, frames_per_step=4)


def test_returns_of_finished_episodes_only():
    collector = _collector(3 * 30)
    batch = next(iter(collector))
    returns = finished_returns(batch)
    assert len(returns) == batch["next", "done"].sum() > 3
    assert all(8 <= value <= 11 for value in returns)  # always to the right
    # Whole episodes are what lies before the last end of each environment.
    ends = [torch.where(done.squeeze(-1))[0][-1].item() + 1 for done in batch["next", "done"]]
    assert sum(returns) == sum(ends)


def test_a_cut_marks_the_last_step_as_truncated_and_not_as_terminated():
    batch = TensorDict(
        {"next": {key: torch.zeros(2, 3, 1, dtype=torch.bool) for key in ("done", "truncated")}},
        batch_size=[2, 3],
    )
    batch["next", "terminated"] = torch.zeros(2, 3, 1, dtype=torch.bool)
    cut_episodes(batch)
    for key, expected in (("done", True), ("truncated", True), ("terminated", False)):
        assert batch["next", key].squeeze(-1).tolist() == [[False, False, expected]] * 2
