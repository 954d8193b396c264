"""Every family of environments is drawn without a display."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.agents.pictures import action_names, camera


def taken(*env: str, **state: torch.Tensor) -> np.ndarray:
    return camera(EnvSettings(*env), make_env(EnvSettings(*env), 1))(TensorDict(state, [1]))


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


NAMES = {
    "minatar/breakout": ("noop", "left", "right"),
    "minatar/freeway": ("noop", "up", "down"),
    "mountaincar": ("left", "noop", "right"),
    "atari/Pong": ("noop", "fire", "right", "left", "rightfire", "leftfire"),
    "gym/FrozenLake-v1": ("0", "1", "2", "3"),
    "pendulum": (),
}


@pytest.mark.parametrize("name", NAMES)
def test_actions_have_names(name: str) -> None:
    pytest.importorskip({"minatar": "minatar", "atari": "ale_py"}.get(name.split("/")[0], "torch"))
    settings = EnvSettings(*name.split("/"))
    assert action_names(settings, make_env(settings, 1)) == NAMES[name]


def test_gridworlds_show_walls_goal_and_agent() -> None:
    pictures = [taken("gridworld", "goals", state=torch.tensor([s])) for s in (2, 27 + 2)]
    assert pictures[0].shape == pictures[1].shape and not np.array_equal(*pictures)  # another goal
    expected = {(60, 60, 60), (235, 235, 230), (60, 170, 90), (40, 90, 200)}
    assert [colours(picture) for picture in pictures] == [expected] * 2


def test_minatar_has_a_colour_for_every_channel() -> None:
    pytest.importorskip("minatar")
    channels = torch.zeros(1, 4, 10, 10, dtype=torch.uint8)
    channels[0, range(4), 2, range(4)] = 1
    assert len(colours(taken("minatar", "breakout", observation=channels))) == 5


CLASSIC = {"acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1", "mountaincar_continuous": "MountainCarContinuous-v0"}


@pytest.mark.parametrize("name", CLASSIC)
def test_gymnasium_draws_the_state_that_the_episode_is_in(name: str) -> None:
    pytest.importorskip("pygame")
    env = make_env(EnvSettings(name), 1)
    draw = camera(EnvSettings(name), env)
    env.set_seed(3)
    game = gymnasium.make(CLASSIC[name], render_mode="rgb_array")
    game.reset(seed=3)
    game.reset()  # TorchRL resets after it has seeded
    for action in env.rollout(9)["action"][0].numpy():
        game.step(action)
    assert np.array_equal(draw(TensorDict()), game.render())
