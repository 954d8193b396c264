"""Batched environments against gymnasium's single ones in a SyncVectorEnv, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.batched import TASKS, CartPole, SequentialEnv, _power_2, control_vector_env

N = 5
# (task, whether its copies are stepped one by one)
KINDS = [(name, singly) for name in TASKS for singly in (False, True) if singly or TASKS[name][1]]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")


def batched(kind, limit):
    name, singly = kind
    single, together, _ = TASKS[name]
    return SequentialEnv(single, N, max_episode_frames=limit) if singly else together(N, max_episode_frames=limit)


def reference(name, limit):
    build = lambda: TimeLimit(TASKS[name][0](), max_episode_steps=limit)  # noqa: E731
    return SyncVectorEnv([build] * N, autoreset_mode=AutoresetMode.DISABLED)


# (number of actions, or beyond which bound continuous ones go; observations times these tell where to push)
DRIVES = {
    "cartpole": (2, [0, 0, 1, 1]),
    "acrobot": (3, [0, 0, 0, 0, -1, 0]),
    "mountaincar": (3, [0, 1]),
    "mountaincar_continuous": (1.3, [0, 1]),
    "pendulum": (2.5, [0, 0, 1]),
}


def policy(name, seed):
    """Actions that see all of the task: bounds exceeded now and then, some copies that reach the goal."""
    size, weights = DRIVES[name]
    rng = np.random.default_rng(seed)

    def act(observation):
        random = rng.uniform(size=N) < np.linspace(1.3, 0.3, N).clip(max=1)
        drive = observation @ np.array(weights) > 0
        if isinstance(size, int):
            return np.where(random, rng.integers(size, size=N), drive * (size - 1))
        pushes = np.where(random, rng.uniform(-size, size, N), np.where(drive, size, -size))
        return pushes.astype(np.float32)[:, None]

    return act


@every_kind
def test_every_number_is_that_of_the_singles(kind, side_by_side):
    name, singly = kind
    limit, steps = {"cartpole": (90, 2_000), "acrobot": (150, 500), "mountaincar": (200, 2_000)}.get(name, (120, 2_000))
    ours, theirs = batched(kind, limit), reference(name, limit)
    _, terminated, truncated = side_by_side(ours, theirs, policy(name, 1), steps, seed=3)
    assert truncated > 3 and (terminated > 3) == (name != "pendulum")
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    if not singly:  # in float64, where observations are float32
        states = np.array([env.unwrapped.state for env in theirs.envs])
        assert np.array_equal(ours._state.T, states[:, [0, 2, 1, 3]] if name == "cartpole" else states)


@pytest.mark.slow
@every_kind
def test_every_number_over_a_hundred_thousand_steps(kind, side_by_side):
    side_by_side(batched(kind, 500), reference(kind[0], 500), policy(kind[0], 2), 100_000 // N, seed=11)


def test_squares_are_those_of_scalars_to_the_last_bit():
    x = 5 * np.random.default_rng(0).normal(size=100_000)
    assert np.array_equal(_power_2(x), [value**2 for value in x]) and not np.array_equal(_power_2(x), x * x)


def test_few_copies_are_stepped_one_by_one():
    for name in TASKS:
        few, many = (control_vector_env(name, n, max_episode_frames=9) for n in (1, 16))
        assert isinstance(few, SequentialEnv) and isinstance(many, SequentialEnv) == (name == "mountaincar_continuous")


@every_kind
@pytest.mark.parametrize("steps", [73, 80, 81])  # 80 is the end of the second episode, 81 its first step
def test_an_environment_goes_on_from_its_state(kind, steps, side_by_side, through_a_file):
    name = kind[0]
    first, second, third = (batched(kind, 40) for _ in range(3))
    side_by_side(first, reference(name, 40), policy(name, 0), steps, seed=3)
    side_by_side(second, reference(name, 40), policy(name, 0), 20, seed=9)
    held = first.snapshot()
    stored, start = through_a_file(held), held["observation"].copy()
    assert second.restore(stored) is True
    side_by_side(first, second, policy(name, 1), 100, start=start)
    # Again, which the steps since left alone; and from what was never stored, in one never reset.
    assert second.restore(stored) is third.restore(held) is True
    side_by_side(third, second, policy(name, 1), 100, start=start)


def test_a_state_is_taken_after_an_end():
    env = SequentialEnv(CartPoleEnv, 1, max_episode_frames=500)
    env.reset(seed=0)
    start = env.snapshot()
    for _ in range(2):
        while not (stepped := env.step(np.array([0])))[2].any():
            pass
        assert stepped[1] == 1.0  # a single that had ended before would pay 0
        env.restore(start)


def test_what_was_returned_is_never_written_again():
    env = CartPole(2, max_episode_frames=3)
    returned = [env.reset(seed=0)[0]]
    copies = [returned[0].copy()]
    for step in range(9):
        arrays = list(env.step(np.array([0, 1]))[:4])
        if step % 3 == 2:
            arrays.append(env.reset(options={"reset_mask": np.array([True, True])})[0])
        returned += arrays
        copies += [array.copy() for array in arrays]
    assert all(np.array_equal(a, b) for a, b in zip(returned, copies, strict=True))


def test_seeds_and_steps_that_do_not_fit_are_refused():
    env, still = CartPole(2, max_episode_frames=1), np.array([0, 0])
    with pytest.raises(match=r"copies \[0, 1\] must be reset before the next step"):
        env.step(still)
    with pytest.raises(match="seed must be an int or 2 of them, got 3"):
        env.reset(seed=[1, 2, 3])
    together = env.reset(seed=4)[0]
    assert np.array_equal(env.reset(seed=[4, 5])[0], together)
    env.step(still)
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(match=r"copies \[1\] must be reset before the next step"):
        env.step(still)
    with pytest.raises(match="snapshot must be that of 2 copies, got that of 3"):
        env.restore(CartPole(3, max_episode_frames=1).snapshot())
    assert not np.array_equal(CartPole(2, max_episode_frames=9).reset()[0][0], env.reset()[0][0])


@pytest.mark.parametrize("name", ["cartpole", "acrobot", "mountaincar", "pendulum"])
def test_environments_joined_for_some_steps_are_each_where_they_would_be_alone(name):
    def members():
        made = [batched((name, False), 7) for _ in range(3)]
        for number, env in enumerate(made):
            env.reset(seed=10 * number)
        return made

    def act(env, steps):
        for _ in range(steps):
            drawn = np.full(env.num_envs, 1) if name != "pendulum" else np.ones((env.num_envs, 1), np.float32)
            observation, reward, terminated, truncated, _ = env.step(drawn)
            ended = terminated | truncated
            if ended.any():
                observation, _ = env.reset(options={"reset_mask": ended})
        return observation, reward

    alone, together = members(), members()
    together[1].reset(seed=99)  # whose generators are others than when it was made
    alone[1].reset(seed=99)
    for steps in (5, 9):  # past a time limit, from which each draws its next start
        joint = type(together[0]).joined(together)
        found = act(joint, steps)
        joint.part(together)
        expected = zip(*[act(env, steps) for env in alone], strict=True)
        for one, several in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, np.concatenate(several))
    joint = type(together[0]).joined(together)
    joint.reset(seed=50)  # generators that no member had before
    joint.part(together)
    start = 50
    for env in alone:
        env.reset(seed=start)
        start += env.num_envs
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_equal(one.snapshot(), other.snapshot())
        np.testing.assert_equal(act(one, 9), act(other, 9))  # past a time limit
