"""Environments of a user's own, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from torchrl_reg.envs import EnvError, EnvSettings, MultiGoalEnv, make_env, register_env, resolve, settings


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(settings.FAMILIES)
    yield
    settings.FAMILIES.clear()
    settings.FAMILIES.update(before)


def _pole(max_episode_frames: int, **_: Any) -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", max_episode_steps=max_episode_frames)


def test_a_single_environment_becomes_a_vector_of_copies() -> None:
    register_env("pole", _pole, max_episode_frames=7)
    acts = lambda td: td.set("action", torch.arange(3) % 2)  # noqa: E731
    first, again = (make_env(EnvSettings("pole"), num_envs=3) for _ in range(2))
    for env in (first, again):
        env.set_seed(3)
    batch = first.rollout(7, acts, break_when_any_done=False)
    torch.testing.assert_close(again.rollout(7, acts, break_when_any_done=False)["observation"], batch["observation"])
    assert batch.shape == (3, 7) and batch["observation"].dtype == torch.float32
    assert batch["next", "truncated"][:, -1].all() and not batch["next", "done"][:, :-1].any()
    starts = batch["observation"][:, 0]
    assert not torch.equal(starts[0], starts[1])
    single = gymnasium.make("CartPole-v1")
    single.reset()
    single.unwrapped.state = starts[1].double().numpy()
    np.testing.assert_allclose(batch["next", "observation"][1, 0].numpy(), single.step(1)[0], atol=1e-6)


def test_settings_reach_the_builder_and_are_checked() -> None:
    seen: list[Any] = []

    def build(**options: Any) -> gymnasium.Env:
        seen.append(options)
        return _pole(options["max_episode_frames"])

    register_env("poles", build, max_episode_frames=9, games=True, sticky_actions=0.1)
    make_env(EnvSettings("poles", "long", sticky_actions=0.25), num_envs=1)
    assert seen[0] == {"max_episode_frames": 9, "sticky_actions": 0.25, "game": "long"}
    assert resolve(EnvSettings("poles", "long")).sticky_actions == 0.1
    with pytest.raises(EnvError, match="game must be the name"):
        make_env(EnvSettings("poles"), 1)
    with pytest.raises(EnvError, match="frame_skip must be unset for 'poles'"):
        make_env(EnvSettings("poles", "long", frame_skip=4), 1)


@pytest.mark.parametrize("kind", ["torchrl", "gymnasium"])
def test_vectorized_environments(kind: str) -> None:
    def build(num_envs: int, max_episode_frames: int) -> Any:
        if kind == "torchrl":
            return MultiGoalEnv(num_envs, max_episode_frames=max_episode_frames)
        return SyncVectorEnv([lambda: _pole(5)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)

    register_env("own", build, max_episode_frames=5, vectorized=True)
    env = make_env(EnvSettings("own"), num_envs=2)
    batch = env.rollout(12, break_when_any_done=False)
    assert batch.shape == (2, 12) and batch["next", "done"].any()
    assert {"episode_reward", "terminated", "truncated"} <= set(batch["next"].keys())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "cartpole"}, "name must be one that no environment has yet, got 'cartpole'"),
        ({"build": 3}, "build must be a function that returns an environment, got 3"),
        ({"frames": 3}, "defaults must be one of .*frame_skip.*got 'frames'"),
        ({"max_episode_frames": 0}, "max_episode_frames must be an int >= 1, got 0"),
    ],
)
def test_bad_input(arguments: dict[str, Any], sentence: str) -> None:
    given = {"name": "mine", "build": _pole, "max_episode_frames": 5, **arguments}
    with pytest.raises(EnvError, match=sentence):
        register_env(given.pop("name"), given.pop("build"), **given)


@pytest.mark.parametrize(
    ("built", "sentence"),
    [
        (lambda n, **_: _pole(5), "build must return a gymnasium VectorEnv"),
        (lambda n, **_: SyncVectorEnv([lambda: _pole(5)] * n), "must return a VectorEnv with AutoresetMode.DISABLED"),
    ],
)
def test_what_a_builder_may_not_return(built: Any, sentence: str) -> None:
    register_env("mine", built, max_episode_frames=5, vectorized=True)
    with pytest.raises(EnvError, match=sentence):
        make_env(EnvSettings("mine"), 2)
