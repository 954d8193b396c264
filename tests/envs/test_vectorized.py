"""Environments of every family in TorchRL: keys, seeds, resets, returns."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from torchrl_reg.envs import EnvSettings, make_env, resolve

# Size of the observation, number of actions or their size and bound, steps after which an episode is truncated.
SPECS = {
    ("cartpole", ""): ((4,), 2, 500),
    ("acrobot", ""): ((6,), 3, 500),
    ("mountaincar", ""): ((2,), 3, 200),
    ("lunarlander", ""): ((8,), 4, 1_000),
    ("minatar", "breakout"): ((4, 10, 10), 3, 10_000),
    ("atari", "pong"): ((4, 84, 84), 6, 108_000),
    ("gridworld", "corridor"): ((20,), 4, 200),
    ("pendulum", ""): ((3,), (1, 2.0), 200),
    ("gym", "CartPole-v1"): ((4,), 2, 500),
    ("gym", "FrozenLake-v1"): ((16,), 4, 100),
    ("gym", "Acrobot-v1"): ((6,), 3, 500),
    ("gym", "Pendulum-v1"): ((3,), (1, 2.0), 200),
    ("gym", "Hopper-v5"): ((11,), (3, 1.0), 1_000),
    ("mountaincar_continuous", ""): ((2,), (1, 1.0), 999),
    ("multigoal", ""): ((2,), (2, 1.0), 30),
    ("mujoco", "hopper"): ((11,), (3, 1.0), 1_000),
    ("mujoco", "walker2d"): ((17,), (6, 1.0), 1_000),
    ("mujoco", "halfcheetah"): ((17,), (6, 1.0), 1_000),
    ("mujoco", "ant"): ((105,), (8, 1.0), 1_000),
    ("mujoco", "humanoid"): ((348,), (17, 0.4), 1_000),
    ("mujoco", "swimmer"): ((8,), (2, 1.0), 1_000),
    ("mujoco", "reacher"): ((10,), (2, 1.0), 1_000),
    ("mujoco", "inverted_pendulum"): ((4,), (1, 3.0), 1_000),
    ("mujoco", "inverted_double_pendulum"): ((9,), (1, 1.0), 1_000),
    ("adroit", "door"): ((39,), (28, 1.0), 200),
    ("adroit", "hammer"): ((46,), (26, 1.0), 200),
    ("adroit", "pen"): ((45,), (24, 1.0), 200),
    ("adroit", "relocate"): ((39,), (30, 1.0), 200),
}


@pytest.mark.parametrize(("name", "game"), SPECS, ids=lambda value: value or "-")
def test_specs_and_keys(name, game):
    shape, actions, limit = SPECS[name, game]
    settings = EnvSettings(name, game=game)
    assert resolve(settings).max_episode_frames == limit
    env = make_env(settings, 3)
    check_env_specs(env)
    batch = env.rollout(4, break_when_any_done=False)
    if isinstance(actions, int):
        assert env.action_spec.dtype == torch.int64 and env.action_spec.shape == (3,)
        assert env.action_spec_unbatched.n == actions
    else:
        size, bound = actions
        box = env.full_action_spec_unbatched["action"].space
        assert torch.equal(box.high, torch.full((size,), bound)) and torch.equal(box.low, -box.high)
        assert batch["action"].shape == (3, 4, size) and batch["action"].dtype == torch.float32
    for observation in (batch["observation"], batch["next", "observation"]):
        assert observation.shape == (3, 4, *shape)
        assert observation.dtype == (torch.uint8 if len(shape) == 3 else torch.float32)
    for key in ("reward", "done", "terminated", "truncated", "episode_reward"):
        assert batch["next", key].shape == (3, 4, 1)
    assert batch["next", "reward"].dtype == torch.float32


def test_a_seed_determines_everything_after_it(short, restart, walk):
    fresh, used = make_env(short, 2), make_env(short, 2)
    walk(used, used.reset(), 23, seed=5)
    expected, _ = walk(fresh, restart(fresh, 7), 65)
    got, _ = walk(used, restart(used, 7), 65)
    assert expected["next", "done"].sum() >= 2  # later resets are part of what was compared
    assert (expected == got).all()
    assert not torch.equal(expected["observation"][0], expected["observation"][1])
    other, _ = walk(used, restart(used, 8), 65)
    assert not torch.equal(other["observation"], expected["observation"])


@pytest.mark.parametrize(
    ("settings", "gym_id"),
    [
        (EnvSettings("cartpole"), "CartPole-v1"),
        (EnvSettings("lunarlander"), "LunarLander-v3"),
        (EnvSettings("mujoco", game="hopper"), "Hopper-v5"),
        (EnvSettings("adroit", game="pen"), "AdroitHandPen-v1"),
        (EnvSettings("gym", game="Pendulum-v1"), "Pendulum-v1"),
        (EnvSettings("gym", game="Hopper-v5"), "Hopper-v5"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_value_equals_a_plain_gymnasium_loop(settings, gym_id, restart, walk):
    settings.max_episode_frames = limit = 90 if settings.name == "lunarlander" else 25
    env = make_env(settings, 2)
    batch, _ = walk(env, restart(env, 3), 2 * limit + 10)
    assert batch["next", "done"].sum() >= 4
    for i, seed in enumerate((3, 4)):  # as gymnasium seeds the members of a vector
        single = gymnasium.make(gym_id, max_episode_steps=limit)
        single.reset(seed=seed)  # set_seed resets, and so does what follows it
        observation, episode_reward = single.reset()[0], torch.zeros(1)
        for row in batch[i]:
            assert np.array_equal(row["observation"], observation.astype(np.float32))
            action = row["action"].numpy()
            observation, reward, terminated, truncated, _ = single.step(action if action.ndim else action.item())
            episode_reward += torch.tensor([reward], dtype=torch.float32)
            step, done = row["next"], terminated or truncated
            # at an episode's end too: this is its last observation
            assert np.array_equal(step["observation"], observation.astype(np.float32))
            assert step["reward"].item() == np.float32(reward) and torch.equal(step["episode_reward"], episode_reward)
            assert [step[flag].item() for flag in ("terminated", "truncated", "done")] == [terminated, truncated, done]
            if done:
                observation, episode_reward = single.reset()[0], torch.zeros(1)


@pytest.mark.parametrize("short", ["cartpole", "atari", "square", "goals", "multigoal"], indirect=True)
def test_a_partial_reset_leaves_the_other_episodes_alone(short, restart, walk):
    env = make_env(short, 3)
    _, state = walk(env, restart(env, 0), 6)
    before = state.clone()
    mask = torch.tensor([[False], [True], [False]])
    state = env.reset(state.set("_reset", mask))
    assert torch.equal(state["observation"][::2], before["observation"][::2])
    assert not torch.equal(state["observation"][1], before["observation"][1])
    assert torch.equal(state["episode_reward"], before["episode_reward"] * ~mask)
    if "steps" in before.keys():  # noqa: SIM118
        assert before["steps"].min() > 0 and torch.equal(state["steps"], before["steps"] * ~mask)
    walk(env, state, 3)


def test_an_unavailable_device_is_named():
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(match="device must be an available device, got 'cuda'"):
        make_env(EnvSettings("cartpole"), 2, device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("short", ["cartpole"], indirect=True)
def test_tensors_live_on_the_device_asked_for(short, restart, walk):
    on_gpu, on_cpu = (make_env(short, 2, device=d) for d in ("cuda", "cpu"))
    check_env_specs(on_gpu)
    start = restart(on_gpu, 0)
    assert start["observation"].is_cuda
    got, _ = walk(on_gpu, start, 60)
    expected, _ = walk(on_cpu, restart(on_cpu, 0), 60)
    assert (got.cpu() == expected).all()
