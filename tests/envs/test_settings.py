from __future__ import annotations

import sys

import pytest
from omegaconf import OmegaConf

from torchrl_reg.envs import EnvError, EnvSettings, frames_per_step, make_env, resolve


def test_resolve_fills_the_family_defaults():
    atari = resolve(EnvSettings("atari", game="breakout", sticky_actions=0.0))
    assert atari == EnvSettings("atari", "breakout", 108_000, 0.0, 4, 4, 0, True, None)
    minatar = resolve(EnvSettings("minatar", game="freeway", minimal_actions=False))
    assert minatar == EnvSettings("minatar", "freeway", 10_000, 0.1, 1, 1, 0, False, True)
    assert resolve(EnvSettings("acrobot")).max_episode_frames == 500
    assert resolve(EnvSettings("lunarlander")).max_episode_frames == 1_000
    assert resolve(atari) == atari


def test_frames_per_step():
    assert frames_per_step(EnvSettings("atari", game="pong")) == 4
    assert frames_per_step(EnvSettings("atari", game="pong", frame_skip=3)) == 3
    assert frames_per_step(EnvSettings("cartpole")) == 1


def test_values_that_change_nothing_are_accepted_everywhere():
    neutral = {"sticky_actions": 0.0, "frame_skip": 1, "frame_stack": 1, "noop_max": 0}
    assert resolve(EnvSettings("cartpole", **neutral)) == resolve(EnvSettings("cartpole"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "cartpol"}, "name must be one of .* got 'cartpol'. Did you mean 'cartpole'?"),
        ({"name": "atari"}, "game must be the name of the atari game, got an empty string"),
        ({"name": "cartpole", "game": "pong"}, "game must be empty for 'cartpole', got 'pong'"),
        ({"name": "minatar", "game": "pong"}, "game must be one of asterix, .* got 'pong'"),
        ({"name": "minatar", "game": "braekout"}, "Did you mean 'breakout'?"),
        ({"name": "atari", "game": "Brekout"}, "game must be .* got 'Brekout'. Did you mean 'breakout'?"),
        ({"name": "cartpole", "frame_skip": 2}, "frame_skip must be unset for 'cartpole', got 2"),
        ({"name": "acrobot", "sticky_actions": 0.1}, "sticky_actions must be unset for"),
        ({"name": "cartpole", "minimal_actions": True}, "minimal_actions must be unset for"),
        (
            {"name": "atari", "game": "pong", "difficulty_ramping": False},
            "difficulty_ramping must be unset for 'atari'",
        ),
        ({"name": "minatar", "game": "freeway", "noop_max": 3}, "noop_max must be unset for"),
        ({"name": "cartpole", "max_episode_frames": 0}, "max_episode_frames must be an int >= 1"),
        ({"name": "cartpole", "max_episode_frames": 1e4}, "must be an int >= 1, got 10000.0"),
        ({"name": "atari", "game": "pong", "sticky_actions": 1.5}, r"probability in \[0, 1\]"),
        ({"name": "atari", "game": "pong", "minimal_actions": 1}, "must be True or False, got 1"),
        ({"name": "minatar", "game": 3}, "game must be a string, got 3"),
    ],
)
def test_bad_settings_end_in_one_sentence(settings, sentence):
    with pytest.raises(EnvError, match=sentence) as error:
        make_env(EnvSettings(**settings), 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", ["cartpole", None, {"name": "cartpole"}])
def test_settings_of_another_kind(settings):
    for call in (lambda: make_env(settings, 2), lambda: frames_per_step(settings)):
        with pytest.raises(
            EnvError, match=r"settings must be EnvSettings, such as EnvSettings\('cartpole'\), got ['N{]"
        ):
            call()


@pytest.mark.parametrize("num_envs", [0, 2.0, True, None])
def test_bad_num_envs(num_envs):
    with pytest.raises(EnvError, match="num_envs must be an int >= 1, got"):
        make_env(EnvSettings("cartpole"), num_envs)


@pytest.mark.parametrize(
    ("settings", "modules", "sentence"),
    [
        (EnvSettings("atari", game="pong"), ["ale_py", "ale_py.vector_env"], r"\.\[atari\]"),
        (EnvSettings("minatar", game="freeway"), ["minatar"], r"\.\[recipes\]"),
        (EnvSettings("lunarlander"), ["Box2D"], r"\.\[box2d\]"),
        (EnvSettings("mujoco", game="ant"), ["mujoco"], r"\.\[mujoco\]"),
        (EnvSettings("adroit", game="pen"), ["gymnasium_robotics"], r"\.\[adroit\]"),
        (EnvSettings("adroit", game="pen"), ["mujoco"], r"\.\[adroit\]"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, settings, modules, sentence):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvError, match=f"got none: pip install -e .{sentence}"):
        make_env(settings, 1)


def test_the_settings_serve_as_a_hydra_schema():
    config = OmegaConf.structured(EnvSettings("minatar", game="freeway"))
    config.game = "asterix"
    assert OmegaConf.to_object(config) == EnvSettings("minatar", game="asterix")
