"""Environment settings, their checks, and environments registered by a user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from omegaconf import OmegaConf

from torchrl_reg.envs import (
    EnvSettings,
    MultiGoalEnv,
    frame_stack,
    frames_per_step,
    make_env,
    register_env,
    resolve,
)
from torchrl_reg.envs.settings import FAMILIES


def test_resolve_fills_the_family_defaults():
    atari = resolve(EnvSettings("atari", game="breakout", sticky_actions=0.0))
    assert atari == EnvSettings("atari", "breakout", 108_000, 0.0, 4, 4, 0, True, None) == resolve(atari)
    minatar = resolve(EnvSettings("minatar", game="freeway", minimal_actions=False))
    assert minatar == EnvSettings("minatar", "freeway", 10_000, 0.1, 1, 1, 0, False, True)
    # Values that change nothing are accepted everywhere.
    neutral = {"sticky_actions": 0.0, "frame_skip": 1, "frame_stack": 1, "noop_max": 0}
    assert resolve(EnvSettings("cartpole", **neutral)) == resolve(EnvSettings("cartpole"))


def test_frames_per_step_and_frame_stack():
    pong, slow = EnvSettings("atari", game="pong"), EnvSettings("atari", game="pong", frame_skip=3, frame_stack=2)
    found = [(frames_per_step(settings), frame_stack(settings)) for settings in (pong, slow, EnvSettings("cartpole"))]
    assert found == [(4, 4), (3, 2), (1, 1)]


BAD = [
    (("cartpol",), {}, "name must be one of .* got 'cartpol'. Did you mean 'cartpole'?"),
    (("atari",), {}, "game must be the name of the atari game, got an empty string"),
    (("cartpole", "pong"), {}, "game must be empty for 'cartpole', got 'pong'"),
    (("minatar", "pong"), {}, "game must be one of asterix, .* got 'pong'"),
    (("minatar", 3), {}, "game must be a string, got 3"),
    (("atari", "Brekout"), {}, "game must be .* got 'Brekout'. Did you mean 'breakout'?"),
    (("mujoco", "hoper"), {}, "must be one of ant, halfcheetah, .* Did you mean 'hopper'?"),
    (("adroit", "dor"), {}, "must be one of door, hammer, pen, relocate, got 'dor'. Did you mean"),
    (("gridworld", "coridor"), {}, "game must be .* got 'coridor'. Did you mean 'corridor'?"),
    (("cartpole",), {"frame_skip": 2}, "frame_skip must be unset for 'cartpole', got 2"),
    (("cartpole",), {"minimal_actions": True}, "minimal_actions must be unset for 'cartpole'"),
    (("mujoco", "ant"), {"sticky_actions": 0.1}, "sticky_actions must be unset for 'mujoco'"),
    (("atari", "pong"), {"difficulty_ramping": False}, "difficulty_ramping must be unset for 'atari'"),
    (("minatar", "freeway"), {"noop_max": 3}, "noop_max must be unset for 'minatar'"),
    (("cartpole",), {"max_episode_frames": 0}, "max_episode_frames must be an int >= 1"),
    (("cartpole",), {"max_episode_frames": 1e4}, "must be an int >= 1, got 10000.0"),
    (("atari", "pong"), {"sticky_actions": 1.5}, r"probability in \[0, 1\]"),
    (("atari", "pong"), {"minimal_actions": 1}, "must be True or False, got 1"),
]


@pytest.mark.parametrize(("names", "fields", "sentence"), BAD)
def test_bad_settings_end_in_one_sentence(names, fields, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make_env(EnvSettings(*names, **fields), 1)
    assert "\n" not in str(error.value)


def test_settings_of_another_kind_and_bad_num_envs():
    for settings in ("cartpole", None, {"name": "cartpole"}):
        for call in (partial(make_env, num_envs=2), frames_per_step):
            with pytest.raises(ValueError, match=r"settings must be EnvSettings, such as .*\), got ['N{]"):
                call(settings)
    for num_envs in (0, 2.0, True, None):
        with pytest.raises(ValueError, match="num_envs must be an int >= 1, got"):
            make_env(EnvSettings("cartpole"), num_envs)


@pytest.mark.parametrize(
    ("settings", "modules", "sentence"),
    [
        (EnvSettings("atari", game="pong"), ["ale_py", "ale_py.vector_env"], r"torchrl_reg\[atari\]"),
        (EnvSettings("minatar", game="freeway"), ["minatar"], r"torchrl_reg\[recipes\]"),
        (EnvSettings("lunarlander"), ["Box2D"], r"torchrl_reg\[box2d\]"),
        (EnvSettings("mujoco", game="ant"), ["mujoco"], r"torchrl_reg\[mujoco\]"),
        (EnvSettings("adroit", game="pen"), ["gymnasium_robotics"], r"torchrl_reg\[adroit\]"),
        (EnvSettings("adroit", game="pen"), ["mujoco"], r"torchrl_reg\[adroit\]"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, settings, modules, sentence):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"got none: pip install .{sentence}"):
        make_env(settings, 1)


def test_the_settings_serve_as_a_hydra_schema():
    config = OmegaConf.structured(EnvSettings("minatar", game="freeway"))
    config.game = "asterix"
    assert OmegaConf.to_object(config) == EnvSettings("minatar", game="asterix")


# Environments of a user's own, by name.


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Removes the environments that a test registers."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def _pole(max_episode_frames: int, **_: Any) -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", max_episode_steps=max_episode_frames)


def _poles(num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED, **options: Any) -> SyncVectorEnv:
    return SyncVectorEnv([partial(_pole, **options)] * num_envs, autoreset_mode=autoreset_mode)


@pytest.mark.parametrize(("build", "vectorized"), [(_pole, False), (_poles, True), (MultiGoalEnv, True)])
def test_copies_of_one_environment_and_vectorized_ones(build: Any, vectorized: bool) -> None:
    register_env("own", build, max_episode_frames=7, vectorized=vectorized)
    env = make_env(EnvSettings("own"), num_envs=3)
    env.set_seed(3)
    still = torch.zeros_like(env.rand_action()["action"])
    batch = env.rollout(7, lambda td: td.set("action", still), break_when_any_done=False)
    assert batch.shape == (3, 7) and batch["observation"].dtype == torch.float32
    assert batch["next", "truncated"][:, -1].all() and not batch["next", "done"][:, :-1].any()
    assert {"episode_reward", "terminated"} <= set(batch["next"].keys())
    assert not torch.equal(batch["observation"][0, 0], batch["observation"][1, 0])


def test_settings_reach_the_builder_and_are_checked() -> None:
    seen: list[Any] = []

    def build(**options: Any) -> gymnasium.Env:
        seen.append(options)
        return _pole(options["max_episode_frames"])

    register_env("poles", build, max_episode_frames=9, games=True, sticky_actions=0.1)
    make_env(EnvSettings("poles", "long", sticky_actions=0.25), num_envs=1)
    assert seen[0] == {"max_episode_frames": 9, "sticky_actions": 0.25, "game": "long"}
    assert resolve(EnvSettings("poles", "long")).sticky_actions == 0.1
    with pytest.raises(ValueError, match="game must be the name"):
        make_env(EnvSettings("poles"), 1)
    with pytest.raises(ValueError, match="frame_skip must be unset for 'poles'"):
        make_env(EnvSettings("poles", "long", frame_skip=4), 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "cartpole"}, "name must be a new name of an environment, got 'cartpole'"),
        ({"build": 3}, "build must be a function that returns an environment, got 3"),
        ({"frames": 3}, "defaults must be one of .*frame_skip.*got 'frames'"),
        ({"build": lambda: _pole(5)}, r"build must take \(max_episode_frames=\), got a function of \(\)"),
        ({"build": _pole, "vectorized": True}, r"build must take \(num_envs, max_episode_frames=\), got a function of"),
        (
            {"build": lambda max_episode_frames: _pole(5), "games": True, "frame_skip": 2},
            r"game=, max_.*, frame_skip=\)",
        ),
        ({"max_episode_frames": 0}, "max_episode_frames must be an int >= 1, got 0"),
    ],
)
def test_what_cannot_be_registered(arguments: dict[str, Any], sentence: str) -> None:
    given = {"name": "mine", "build": _pole, "max_episode_frames": 5, **arguments}
    with pytest.raises(ValueError, match=sentence):
        register_env(given.pop("name"), given.pop("build"), **given)


@pytest.mark.parametrize(
    ("built", "sentence"),
    [
        (lambda num_envs, **options: _pole(**options), "build must return a gymnasium VectorEnv"),
        (
            partial(_poles, autoreset_mode=AutoresetMode.NEXT_STEP),
            "must return a VectorEnv with AutoresetMode.DISABLED",
        ),
    ],
)
def test_what_a_builder_may_not_return(built: Any, sentence: str) -> None:
    register_env("mine", built, max_episode_frames=5, vectorized=True)
    with pytest.raises(ValueError, match=sentence):
        make_env(EnvSettings("mine"), 2)
