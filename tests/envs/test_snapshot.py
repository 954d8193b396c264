"""A restored environment continues like one that was never interrupted, in every family."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from torchrl.envs import GymEnv

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.atari import CallerResetAtari
from torchrl_reg.envs.snapshot import RecordedVectorEnv
from torchrl_reg.lab.run.checkpoint import restorable_part


def test_what_follows_is_the_same(short: EnvSettings, walk: Any, through_a_file: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(CallerResetAtari, "RESEED_STEPS", 15)
    env, other = make_env(short, 2), make_env(short, 2)
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
    _, state = walk(env, env.reset(), 39)
    assert len(restorable_part(env).snapshot()["record"]) == 40  # 39 steps after a reset
    walk(env, state, 6)
    snapshot = restorable_part(env).snapshot()
    assert snapshot["seedings"].tolist() == [1, 1]
    assert len(snapshot["record"]) == 5


def test_the_record_forgets_what_a_copy_is_past(walk: Any) -> None:
    env = make_env(EnvSettings("lunarlander", max_episode_frames=8), 2)
    walk(env, env.reset(), 20)
    assert [len(actions) for actions in restorable_part(env).snapshot()["actions"]] == [4, 4]


def test_what_cannot_be_repeated_is_noticed() -> None:
    env = RecordedVectorEnv(partial(gymnasium.make, "CartPole-v1"), 2)
    env.reset(seed=0)
    env.step(np.array([0, 1]))
    snapshot = env.snapshot()
    assert env.restore(snapshot) is True
    snapshot["observation"][1, 2] += 1e-6  # as on a machine that computes differently
    assert env.restore(snapshot) is False
    assert restorable_part(GymEnv("CartPole-v1")) is None  # has no snapshot at all
