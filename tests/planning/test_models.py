"""Emulators as models: gymnasium copies, restored vector environments, and environments without a model."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from torchrl_reg.envs import MinAtar
from torchrl_reg.planning import UCT, AtariModel, GymModel, RandomRollout, VectorModel


def cartpole() -> GymModel:
    return GymModel(gymnasium.make("CartPole-v1"))


def minatar(game: str, num_envs: int = 1, max_episode_frames: int = 10**9, sticky_actions: float = 0.2) -> MinAtar:
    settings = {"sticky_actions": sticky_actions, "minimal_actions": True, "difficulty_ramping": True}
    return MinAtar(num_envs, game=game, max_episode_frames=max_episode_frames, **settings)


def test_a_copied_environment_follows_the_real_one_which_it_does_not_touch() -> None:
    real = gymnasium.make("CartPole-v1").unwrapped
    model = GymModel(real)
    state = model.reset(2, seed=3)
    seen, _ = real.reset(seed=4)  # the second episode
    assert np.array_equal(model.observation(state)[1].numpy(), seen)
    terminated = False
    while not terminated:
        reward, state, ended = model.step(state[-1:], torch.tensor([1]))
        seen, real_reward, terminated, _, _ = real.step(1)
        assert np.array_equal(model.observation(state)[0].numpy(), seen)
        assert (reward.item(), ended.item()) == (real_reward, terminated)


def test_a_state_can_be_left_twice_until_it_is_released() -> None:
    model = cartpole()
    start = model.reset(1, seed=0)
    left, right, again = (model.step(start, torch.tensor([action]))[1] for action in (0, 1, 0))
    seen = model.observation(left)
    assert torch.equal(seen, model.observation(again)) and not torch.equal(seen, model.observation(right))
    mark = model.mark()
    _, later, _ = model.step(right, torch.tensor([1]))
    assert model.num_snapshots == 5
    model.release(mark)
    assert model.num_snapshots == 4
    model.release(0, keep=left)
    assert model.num_snapshots == 1 and torch.equal(model.observation(left), seen)
    with pytest.raises(KeyError):
        model.observation(later)
    assert [len(part) for part in model.step(left[:0], torch.zeros(0, dtype=torch.int64))] == [0, 0, 0]


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_a_restored_game_follows_the_real_one_whatever_is_searched_between(game: str) -> None:
    model, real = VectorModel(minatar(game)), minatar(game)
    state = model.reset(2, seed=6)[1:]  # the second episode
    seen, _ = real.reset(seed=7)
    for step in range(60):
        assert np.array_equal(model.observation(state), seen)
        action = step % model.num_actions
        model.step(state.expand(3), torch.arange(3) % model.num_actions)
        reward, state, ended = model.step(state, torch.tensor([action]))
        seen, real_reward, terminated, _, _ = real.step(np.array([action]))
        assert (reward.item(), ended.item()) == (real_reward[0], terminated[0])
        if ended:
            break
    assert step > 5


def test_a_truncated_episode_of_a_restored_game_ends() -> None:
    model = VectorModel(minatar("freeway", max_episode_frames=3, sticky_actions=0.0))
    found = UCT(num_simulations=40)(model, model.reset(1, seed=0))
    assert (found.tree.children[0] >= 0).any(-1).any(-1).sum() == 1 + 3 + 9  # three actions deep


def test_rollouts_leave_no_snapshots() -> None:
    model = cartpole()
    UCT(num_simulations=5)(model, model.reset(2, seed=0), evaluate=RandomRollout(model, max_steps=7))
    assert model.num_snapshots == 2 * (1 + 5)


class Uncopied(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)

    def __deepcopy__(self, memo: dict) -> Any:
        raise TypeError("cannot pickle 'SwigPyObject' object")


class Shared(gymnasium.Env):
    """Its copies count on one list."""

    action_space = gymnasium.spaces.Discrete(2)
    count: list[int] = [0]

    def reset(self, **_: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(1), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count[0] += 1
        return np.array([float(self.count[0])]), 0.0, False, False, {}


class Named(Shared):
    """Its observations are a Dict."""

    observation_space = gymnasium.spaces.Dict({"seen": gymnasium.spaces.Box(-1.0, 1.0, (2,))})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GymModel(Named()), r"give arrays as observations \(FlattenObs.*, got Named with Dict\('seen': Box"),
        (lambda: GymModel(gymnasium.make("Pendulum-v1")), "env must have discrete actions, got Pendulum-v1 with Box"),
        (lambda: GymModel(Uncopied()), r"copy.deepcopy can clone, got Uncopied \(TypeError: cannot pickle"),
        (lambda: GymModel(Shared()), "env must be one whose copies are independent, got Shared, two copies of which"),
        (lambda: VectorModel(minatar("breakout", 2)), "env must hold one copy, got MinAtar with 2"),
        (lambda: VectorModel(gymnasium.make_vec("CartPole-v1")), "env must be one that can be restored from a snapsh"),
        (lambda: AtariModel("brekout"), "game must be an Atari game such as breakout, got 'brekout'"),
        *[
            (lambda bad=bad: AtariModel("pong", **bad), message)
            for bad, message in (
                ({"frame_skip": 0}, "frame_skip must be at least 1, got 0"),
                ({"num_emulators": 0}, "num_emulators must be at least 1, got 0"),
                ({"frame_stack": 0}, "frame_stack must be at least 1, got 0"),
                ({"noop_max": -1}, "noop_max must be at least 0, got -1"),
                ({"sticky_actions": 1.0}, r"sticky_actions must be a probability in \[0, 1\), got 1.0"),
            )
        ],
    ],
)
def test_what_cannot_be_planned_in_is_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
