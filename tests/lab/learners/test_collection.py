from __future__ import annotations

import pytest
import tiny_dqn
import torch
from tensordict import TensorDict
from torchrl.envs import StepCounter, TransformedEnv

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import ConfigError
from torchrl_reg.lab.learners.collection import make_collector, truncate_episodes
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
        with pytest.raises(ConfigError, match=rf"a positive multiple of 12 .* got {frames}\.$"):
            _collector(frames)


def test_what_several_processes_cannot_collect():
    """Where a recipe adds to its environment, where the policy cannot be copied, where trajectories are numbered."""
    cpu = torch.device("cpu")
    settings = {"frames_per_batch": 8, "frames_per_step": 1, "device": cpu, "storing_device": cpu, "processes": 2}
    env, policy = make_env(EnvSettings("cartpole"), 4), torch.nn.Identity()
    for expected, given, acting, numbered in (
        (
            "1 where a recipe adds to its environment",
            TransformedEnv(env, StepCounter(), auto_unwrap=False),
            policy,
            False,
        ),
        ("1 with a function, which cannot be copied", env, lambda state: state, False),
        ("1 where trajectories are numbered", env, policy, True),
    ):
        with pytest.raises(ConfigError, match=rf"^run\.collectors must be {expected}, got 2\.$"):
            make_collector(given, acting, **settings, track_trajectories=numbered)
    settings["device"] = torch.device("meta")
    with pytest.raises(ConfigError, match=r"^run\.collectors must be 1 on a GPU, got 2\.$"):
        make_collector(env, policy, **settings, track_trajectories=False)


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
