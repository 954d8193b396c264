"""Environments with continuous actions: Pendulum, MountainCarContinuous, MuJoCo and Adroit."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvError, EnvSettings, frames_per_step, make_env, resolve
from torchrl_reg.envs.adroit import adroit_env
from torchrl_reg.envs.snapshot import RecordedVectorEnv

# Sizes of observation and action, bound of the actions, steps after which an episode is truncated.
ENVS = {
    ("pendulum", ""): (3, 1, 2.0, 200),
    ("mountaincar_continuous", ""): (2, 1, 1.0, 999),
    ("multigoal", ""): (2, 2, 1.0, 30),
    ("mujoco", "hopper"): (11, 3, 1.0, 1000),
    ("mujoco", "walker2d"): (17, 6, 1.0, 1000),
    ("mujoco", "halfcheetah"): (17, 6, 1.0, 1000),
    ("mujoco", "ant"): (105, 8, 1.0, 1000),
    ("mujoco", "humanoid"): (348, 17, 0.4, 1000),
    ("mujoco", "swimmer"): (8, 2, 1.0, 1000),
    ("mujoco", "reacher"): (10, 2, 1.0, 1000),
    ("mujoco", "inverted_pendulum"): (4, 1, 3.0, 1000),
    ("mujoco", "inverted_double_pendulum"): (9, 1, 1.0, 1000),
    ("adroit", "door"): (39, 28, 1.0, 200),
    ("adroit", "hammer"): (46, 26, 1.0, 200),
    ("adroit", "pen"): (45, 24, 1.0, 200),
    ("adroit", "relocate"): (39, 30, 1.0, 200),
}
every_env = pytest.mark.parametrize(("name", "game"), ENVS, ids=lambda value: value or "-")


def play(env, start, steps, seed=0):
    """The steps of fixed random actions from ``start`` on, stacked along time, and the next start."""
    box = env.full_action_spec_unbatched["action"].space
    generator = torch.Generator().manual_seed(seed)
    history, current = [], start
    for _ in range(steps):
        action = box.low + (box.high - box.low) * torch.rand(*env.batch_size, *box.low.shape, generator=generator)
        stepped, current = env.step_and_maybe_reset(current.set("action", action))
        history.append(stepped.clone())
    return torch.stack(history, 1), current


def assert_identical(a, b):
    for key in a.keys(True, True):
        assert torch.equal(a[key], b[key]), key


@every_env
def test_specs(name, game):
    size, num_actions, bound, limit = ENVS[name, game]
    settings = EnvSettings(name, game=game)
    assert resolve(settings).max_episode_frames == limit and frames_per_step(settings) == 1
    env = make_env(settings, 2)
    check_env_specs(env)
    box = env.full_action_spec_unbatched["action"].space
    assert torch.equal(box.high, torch.full((num_actions,), bound)) and torch.equal(box.low, -box.high)
    assert env.action_spec.shape == (2, num_actions) and env.action_spec.dtype == torch.float32
    batch = env.rollout(3, break_when_any_done=False)
    assert batch["action"].shape == (2, 3, num_actions) and batch["action"].dtype == torch.float32
    for observation in (batch["observation"], batch["next", "observation"]):
        assert observation.shape == (2, 3, size) and observation.dtype == torch.float32
    for key in ("reward", "done", "terminated", "truncated", "episode_reward"):
        assert batch["next", key].shape == (2, 3, 1)
    assert batch["next", "reward"].dtype == torch.float32


@pytest.mark.parametrize(("name", "game"), [env for env in ENVS if not env[1].startswith("inverted")])
def test_the_bounds_are_actions_and_the_limit_truncates(name, game, restart):
    env = make_env(EnvSettings(name, game=game, max_episode_frames=4), 2)
    box = env.full_action_spec_unbatched["action"].space
    state = restart(env, 0)
    for step in range(1, 5):
        action = torch.stack([box.low, box.high])
        assert env.action_spec.is_in(action)
        stepped, state = env.step_and_maybe_reset(state.set("action", action))
        assert stepped["next"].isfinite().all()
        assert (stepped["next", "truncated"] == (step == 4)).all() and not stepped["next", "terminated"].any()
        assert torch.equal(stepped["next", "done"], stepped["next", "truncated"])
    # What the episode ended with is kept, and is not what the next one starts with.
    assert not torch.equal(stepped["next", "observation"], state["observation"])


@every_env
def test_a_seed_determines_everything_after_it(name, game, restart):
    settings = EnvSettings(name, game=game, max_episode_frames=9)
    fresh, used = make_env(settings, 2), make_env(settings, 2)
    _, current = play(used, used.reset(), 5, seed=5)
    expected, _ = play(fresh, restart(fresh, 7), 20)
    got, _ = play(used, restart(used, 7), 20)
    assert expected["next", "done"].sum() >= 4  # later resets are part of what was compared
    assert_identical(expected, got)
    assert not torch.equal(expected["observation"][0], expected["observation"][1])
    other, _ = play(used, restart(used, 8), 20)
    assert not torch.equal(other["observation"], expected["observation"])


def test_set_seed_and_rollout_reproduce():
    env = make_env(EnvSettings("mujoco", game="hopper"), 2)
    runs = []
    for _ in range(2):
        env.set_seed(3)
        torch.manual_seed(0)
        runs.append(env.rollout(40, break_when_any_done=False))
    assert_identical(*runs)


@pytest.mark.parametrize(
    ("name", "game", "gym_id"),
    [
        ("pendulum", "", "Pendulum-v1"),
        ("mountaincar_continuous", "", "MountainCarContinuous-v0"),
        ("mujoco", "hopper", "Hopper-v5"),
        ("adroit", "pen", "AdroitHandPen-v1"),
    ],
)
def test_every_value_equals_a_plain_gymnasium_loop(name, game, gym_id, restart):
    env = make_env(EnvSettings(name, game=game, max_episode_frames=25), 2)
    batch, _ = play(env, restart(env, 3), 60)
    assert batch["next", "done"].sum() >= 4
    for i, seed in enumerate((3, 4)):  # as gymnasium seeds the members of a vector
        single = gymnasium.make(gym_id, max_episode_steps=25)
        single.reset(seed=seed)  # set_seed resets, and so does what follows it
        observation, _ = single.reset()
        episode_reward = torch.zeros(1)
        for t in range(60):
            row = batch[i, t]
            assert np.array_equal(row["observation"], observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = single.step(row["action"].numpy())
            episode_reward += torch.tensor([reward], dtype=torch.float32)
            # at an episode's end too: this is its last observation
            assert np.array_equal(row["next", "observation"], observation.astype(np.float32))
            assert row["next", "reward"].item() == np.float32(reward)
            assert row["next", "terminated"].item() == terminated
            assert row["next", "truncated"].item() == truncated
            assert row["next", "done"].item() == (terminated or truncated)
            assert torch.equal(row["next", "episode_reward"], episode_reward)
            if terminated or truncated:
                observation, _ = single.reset()
                episode_reward = torch.zeros(1)


def test_hopper_terminates_when_it_falls_and_halfcheetah_never(restart):
    hopper = make_env(EnvSettings("mujoco", game="hopper"), 2)
    batch, _ = play(hopper, restart(hopper, 0), 150)
    ended = batch["next", "done"].squeeze(-1)
    assert ended.any(1).all() and not batch["next", "truncated"].any()
    height, angle = batch["next", "observation"][..., :2].unbind(-1)
    unhealthy = (height < 0.7) | (angle.abs() > 0.2)
    assert torch.equal(ended, unhealthy)
    cheetah = make_env(EnvSettings("mujoco", game="halfcheetah", max_episode_frames=150), 2)
    batch, _ = play(cheetah, restart(cheetah, 0), 150)
    assert not batch["next", "terminated"].any() and batch["next", "truncated"][:, -1].all()


def test_mountain_car_terminates_at_the_flag(restart):
    env = make_env(EnvSettings("mountaincar_continuous"), 2)
    state = restart(env, 0)
    for _ in range(200):
        action = state["observation"][:, 1:].sign()  # push where it moves: energy grows
        stepped, state = env.step_and_maybe_reset(state.set("action", action))
        if stepped["next", "done"].any():
            break
    ended = stepped["next", "done"]
    assert stepped["next", "terminated"][ended].all() and not stepped["next", "truncated"].any()
    assert (stepped["next", "reward"][ended] > 99).all()


def palm_to_object(hand, game):
    sites, bodies = hand.data.site_xpos, hand.data.xpos
    if game == "door":
        return np.linalg.norm(sites[hand.grasp_site_id] - sites[hand.handle_site_id])
    return np.linalg.norm(sites[hand.S_grasp_site_id] - bodies[hand.obj_body_id])


@pytest.mark.parametrize("game", ["door", "hammer", "relocate"])
def test_adroit_rewards_reaching(game):
    """The documented term is -0.1 |palm - object|; release 1.4.2 of gymnasium-robotics has +0.1 there."""
    hands = RecordedVectorEnv(partial(adroit_env, game=game, max_episode_frames=50), 1)
    plain = gymnasium.make(f"AdroitHand{game.capitalize()}-v1")
    hands.action_space.seed(0)
    hands.reset(seed=[1])
    plain.reset(seed=1)
    for _ in range(20):
        action = hands.action_space.sample()
        _, rewards, *_ = hands.step(action)
        _, reward, *_ = plain.step(action[0])
        distance = palm_to_object(hands.envs[0].unwrapped, game)
        assert distance > 0.05
        assert rewards[0] == pytest.approx(reward - 0.2 * distance, abs=1e-9)
        if game == "relocate":  # the ball still lies on the table, so reaching is the whole reward
            assert rewards[0] == pytest.approx(-0.1 * distance, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "mujoco"}, "game must be the name of the mujoco game, got an empty string"),
        ({"name": "mujoco", "game": "hoper"}, "must be one of ant, halfcheetah, .* Did you mean 'hopper'?"),
        ({"name": "adroit", "game": "dor"}, "must be one of door, hammer, pen, relocate, got 'dor'. Did you mean"),
        ({"name": "pendulum", "game": "hopper"}, "game must be empty for 'pendulum'"),
        ({"name": "mujoco", "game": "ant", "sticky_actions": 0.1}, "sticky_actions must be unset for 'mujoco'"),
        ({"name": "adroit", "game": "pen", "frame_skip": 5}, "frame_skip must be unset for 'adroit'"),
    ],
)
def test_bad_settings_end_in_one_sentence(settings, sentence):
    with pytest.raises(EnvError, match=sentence) as error:
        make_env(EnvSettings(**settings), 1)
    assert "\n" not in str(error.value)


def test_building_prints_nothing_and_leaves_no_file(tmp_path):
    code = (
        "from torchrl_reg.envs import EnvSettings, make_env\n"
        "for name, game in (('mujoco', 'halfcheetah'), ('adroit', 'door')):\n"
        "    make_env(EnvSettings(name, game=game), 2).rollout(3)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
