"""An environment that is put back where it was goes on as if it had never been left, in every family."""

from __future__ import annotations

import io
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import GymEnv

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.atari import CallerResetAtari
from torchrl_reg.envs.snapshot import RecordedVectorEnv
from torchrl_reg.training.packing import pack_arrays, unpack_arrays
from torchrl_reg.training.run.env_state import restorable_part

FAMILIES = {
    "cartpole": EnvSettings("cartpole", max_episode_frames=30),
    "acrobot": EnvSettings("acrobot", max_episode_frames=17),
    "lunarlander": EnvSettings("lunarlander", max_episode_frames=60),
    "mountaincar": EnvSettings("mountaincar", max_episode_frames=13),
    "pendulum": EnvSettings("pendulum", max_episode_frames=13),
    "mountaincar_continuous": EnvSettings("mountaincar_continuous", max_episode_frames=13),
    **{
        game: EnvSettings("minatar", game=game, max_episode_frames=40, sticky_actions=0.4)
        for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    },
    "atari": EnvSettings("atari", game="pong", max_episode_frames=80, noop_max=7),
    "gridworld": EnvSettings("gridworld", game="square", max_episode_frames=9),
    "multigoal": EnvSettings("multigoal", max_episode_frames=9),
    "goals": EnvSettings("gridworld", game="goals", max_episode_frames=9),
    "hopper": EnvSettings("mujoco", game="hopper", max_episode_frames=25),
    "humanoid": EnvSettings("mujoco", game="humanoid", max_episode_frames=25),
    "door": EnvSettings("adroit", game="door", max_episode_frames=9),
}
NEEDS = {"lunarlander": "Box2D", "hopper": "mujoco", "humanoid": "mujoco", "door": "gymnasium_robotics"}


def through_a_file(data: Any) -> Any:
    file = io.BytesIO()
    torch.save(pack_arrays(data), file)
    file.seek(0)
    return unpack_arrays(torch.load(file, weights_only=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_follows_is_the_same(name: str, walk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"))
    monkeypatch.setattr(CallerResetAtari, "RESEED_STEPS", 15)
    env, other = make_env(FAMILIES[name], 2), make_env(FAMILIES[name], 2)
    env.set_seed(5)
    _, state = walk(env, env.reset(), 47, seed=0)
    stored, carried = through_a_file(restorable_part(env).snapshot()), state.clone()
    expected, _ = walk(env, state, 60, seed=1)
    assert expected["next", "done"].sum() > 1  # resets are among what is compared

    walk(other, other.reset(), 3, seed=2)
    assert restorable_part(other).restore(stored) is True
    # Twice: what was brought back can be stored and brought back again.
    again = through_a_file(restorable_part(other).snapshot())
    assert restorable_part(other).restore(again) is True
    found, _ = walk(other, carried, 60, seed=1)
    assert (found == expected).all()


def test_a_game_is_seeded_anew_once_its_record_is_long(walk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CallerResetAtari, "RESEED_STEPS", 30)
    env = make_env(EnvSettings("atari", game="pong", max_episode_frames=80), 2)  # 20 steps an episode
    env.set_seed(0)
    _, state = walk(env, env.reset(), 39, seed=0)
    assert len(restorable_part(env).snapshot()["record"]) == 40  # 39 steps after a reset
    walk(env, state, 6, seed=0)
    snapshot = restorable_part(env).snapshot()
    assert snapshot["seedings"].tolist() == [1, 1]
    assert len(snapshot["record"]) == 5


def test_the_record_forgets_what_a_copy_is_past(walk: Any) -> None:
    pytest.importorskip("Box2D")
    env = make_env(EnvSettings("lunarlander", max_episode_frames=8), 2)
    env.set_seed(0)
    _, state = walk(env, env.reset(), 100, seed=0)
    part = restorable_part(env)
    stored = part.snapshot()
    assert max(len(actions) for actions in stored["actions"]) < 8
    expected, _ = walk(env, state.clone(), 5, seed=1)
    assert part.restore(stored)
    assert (walk(env, state, 5, seed=1)[0] == expected).all()


class Drifting(gymnasium.Env):
    """Not a function of seed and actions: every step of the process shows."""

    observation_space = gymnasium.spaces.Box(-math.inf, math.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        type(self).steps += 1
        return np.full(1, self.steps, np.float32), 0.0, False, False, {}


def test_what_cannot_be_repeated_is_noticed() -> None:
    env = RecordedVectorEnv(Drifting, 2)
    env.reset(seed=0)
    env.step(np.array([0, 1]))
    assert env.restore(env.snapshot()) is False


def test_an_environment_without_a_snapshot_is_recognized() -> None:
    assert restorable_part(GymEnv("CartPole-v1")) is None
