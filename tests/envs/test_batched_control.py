"""Batched environments against gymnasium's singles in a SyncVectorEnv: every number, bit for bit."""

from __future__ import annotations

import io

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs import EnvError
from torchrl_reg.envs.batched_control import TASKS, CartPole, Singles, _power_2, control_vector_env
from torchrl_reg.training.packing import pack_arrays, unpack_arrays

IDS = {
    "cartpole": "CartPole-v1",
    "acrobot": "Acrobot-v1",
    "pendulum": "Pendulum-v1",
    "mountaincar": "MountainCar-v0",
    "mountaincar_continuous": "MountainCarContinuous-v0",
}
# (task, whether its copies are stepped one by one)
KINDS = [("cartpole", False), ("cartpole", True), ("acrobot", False), ("acrobot", True)]
KINDS += [("pendulum", False), ("pendulum", True), ("mountaincar", False), ("mountaincar", True)]
KINDS += [("mountaincar_continuous", True)]
N = 5


def batched(kind, limit):
    name, singly = kind
    single, together, _ = TASKS[name]
    return Singles(single, N, max_episode_frames=limit) if singly else together(N, max_episode_frames=limit)


def reference(name, limit):
    def build():
        return TimeLimit(gymnasium.make(IDS[name], disable_env_checker=True).unwrapped, max_episode_steps=limit)

    return SyncVectorEnv([build] * N, autoreset_mode=AutoresetMode.DISABLED)


def policy(name, rng):
    """Actions that see all of the task: bounds exceeded now and then, some copies that reach the goal."""
    bias = np.linspace(0, 1, N)

    def act(observation):
        noise = rng.uniform(size=N) < 0.3
        if name == "cartpole":
            return np.where(noise, rng.integers(2, size=N), observation[:, 2] + observation[:, 3] > 0)
        if name == "acrobot":
            return np.where(noise | (bias < 0.3), rng.integers(3, size=N), np.where(observation[:, 4] > 0, 0, 2))
        if name == "mountaincar":  # pushes where it moves: energy grows
            return np.where(noise | (bias < 0.3), rng.integers(3, size=N), np.where(observation[:, 1] > 0, 2, 0))
        scale = 2.5 if name == "pendulum" else 1.3
        random = rng.uniform(-scale, scale, size=N)
        push = np.sign(observation[:, 1]) * scale if name != "pendulum" else random
        return np.where(noise | (bias < 0.3), random, push).astype(np.float32)[:, None]

    return act


def compare(ours, theirs, act, steps, seed):
    """Plays both and returns how many episodes were terminated and truncated."""
    got, expected = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
    ends = np.zeros(2, int)
    for _ in range(steps):
        assert got.dtype == expected.dtype and np.array_equal(got, expected)
        actions = act(got)
        got, reward, *flags, _ = ours.step(actions)
        expected, their_reward, *their_flags, _ = theirs.step(actions)
        assert np.array_equal(got, expected)
        assert np.array_equal(reward, their_reward.astype(np.float32))
        assert np.array_equal(flags, their_flags)
        ends += np.sum(flags, 1)
        mask = flags[0] | flags[1]
        if mask.any():
            got = ours.reset(options={"reset_mask": mask})[0]
            expected = theirs.reset(options={"reset_mask": mask})[0]
    return ends.tolist()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_every_number_is_that_of_the_singles(kind):
    name, singly = kind
    limit = {"cartpole": 90, "acrobot": 150, "mountaincar": 200}.get(name, 120)
    ours, theirs = batched(kind, limit), reference(name, limit)
    steps = 500 if name == "acrobot" else 2_000
    terminated, truncated = compare(ours, theirs, policy(name, np.random.default_rng(1)), steps, seed=3)
    assert truncated > 3 and (terminated > 3) == (name != "pendulum")
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    if not singly:  # in float64, where observations are float32
        states = np.array([env.unwrapped.state for env in theirs.envs])
        assert np.array_equal(ours._state.T, states[:, [0, 2, 1, 3]] if name == "cartpole" else states)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_every_number_over_a_hundred_thousand_steps(kind):
    ours, theirs = batched(kind, 500), reference(kind[0], 500)
    compare(ours, theirs, policy(kind[0], np.random.default_rng(2)), 100_000 // N, seed=11)


def test_squares_are_those_of_scalars_to_the_last_bit():
    x = 5 * np.random.default_rng(0).normal(size=100_000)
    assert np.array_equal(_power_2(x), [value**2 for value in x]) and not np.array_equal(_power_2(x), x * x)


def test_few_copies_are_stepped_one_by_one():
    for name in IDS:
        few, many = (control_vector_env(name, n, max_episode_frames=9) for n in (1, 16))
        assert isinstance(few, Singles) and isinstance(many, Singles) == (name == "mountaincar_continuous")


def play(env, name, rng, steps, seed=None):
    if seed is not None:
        env.reset(seed=seed)
    act, seen, observation = policy(name, rng), [], env.snapshot()["observation"]
    for _ in range(steps):
        *values, _ = env.step(act(observation))
        seen.append(values)
        observation, mask = values[0], values[2] | values[3]
        if mask.any():
            observation = env.reset(options={"reset_mask": mask})[0]
            seen.append([observation])
    return seen


def through_a_file(data):
    file = io.BytesIO()
    torch.save(pack_arrays(data), file)
    file.seek(0)
    return unpack_arrays(torch.load(file, weights_only=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_an_environment_goes_on_from_its_state(kind):
    name = kind[0]
    first, second = batched(kind, 40), batched(kind, 40)
    # 80 is the end of the second episode, 81 its first step: the state holds both.
    for steps in (73, 80, 81):
        play(first, name, np.random.default_rng(0), steps, seed=3)
        play(second, name, np.random.default_rng(0), 20, seed=9)
        held = first.snapshot()
        stored, after = through_a_file(held), play(first, name, np.random.default_rng(1), 100)
        # From a file; again, which the steps since left alone; and from what was never stored, in one never reset.
        for env, state in ((second, stored), (second, stored), (batched(kind, 40), held)):
            assert env.restore(state) is True
            for got, expected in zip(play(env, name, np.random.default_rng(1), 100), after, strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_state_is_taken_after_an_end():
    env = Singles(CartPoleEnv, 1, max_episode_frames=500)
    env.reset(seed=0)
    start = env.snapshot()
    for _ in range(2):
        while not (stepped := env.step(np.array([0])))[2].any():
            pass
        assert stepped[1] == 1.0  # a single that had ended before would pay 0
        env.restore(start)


def test_what_was_returned_is_never_written_again():
    env = CartPole(2, max_episode_frames=3)
    returned, copies = [], []

    def keep(*arrays):
        returned.extend(arrays)
        copies.extend(array.copy() for array in arrays)

    keep(env.reset(seed=0)[0])
    for step in range(9):
        keep(*env.step(np.array([0, 1]))[:4])
        if step % 3 == 2:
            keep(env.reset(options={"reset_mask": np.array([True, True])})[0])
    assert all(np.array_equal(a, b) for a, b in zip(returned, copies, strict=True))


def test_seeds_and_steps_that_do_not_fit_are_refused():
    env = CartPole(2, max_episode_frames=1)
    with pytest.raises(EnvError, match=r"step must follow a reset of the finished copies \[0, 1\]"):
        env.step(np.array([0, 0]))
    with pytest.raises(EnvError, match="seed must be an int or 2 of them, got 3"):
        env.reset(seed=[1, 2, 3])
    together = env.reset(seed=4)[0]
    assert np.array_equal(env.reset(seed=[4, 5])[0], together)
    env.step(np.array([0, 1]))
    with pytest.raises(EnvError, match="step must follow a reset of the finished copies"):
        env.step(np.array([0, 1]))
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(EnvError, match=r"finished copies \[1\]"):
        env.step(np.array([0, 1]))
    with pytest.raises(EnvError, match="snapshot must be that of 2 copies, got that of 3"):
        env.restore(CartPole(3, max_episode_frames=1).snapshot())
    assert not np.array_equal(CartPole(2, max_episode_frames=9).reset()[0][0], env.reset()[0][0])
