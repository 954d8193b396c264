"""Every family of environments is drawn without a display."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchrl_reg.agents.pictures import camera
from torchrl_reg.envs import EnvSettings, make_env


def taken(settings: EnvSettings, **state: torch.Tensor) -> np.ndarray:
    return camera(settings, make_env(settings, 1))(TensorDict(state, [1]))


def test_gridworlds_show_walls_goal_and_agent() -> None:
    first, second = (taken(EnvSettings("gridworld", "goals"), state=torch.tensor([s])) for s in (2, 27 + 2))
    assert first.shape == second.shape and not np.array_equal(first, second)  # another goal
    for picture in (first, second):
        colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
        assert colours == {(60, 60, 60), (235, 235, 230), (60, 170, 90), (40, 90, 200)}


def test_minatar_has_a_colour_for_every_channel() -> None:
    pytest.importorskip("minatar")
    channels = torch.zeros(1, 4, 10, 10, dtype=torch.uint8)
    for channel in range(4):
        channels[0, channel, 2, channel] = 1
    picture = taken(EnvSettings("minatar", "breakout"), observation=channels)
    assert len({tuple(colour) for colour in picture.reshape(-1, 3).tolist()}) == 5


@pytest.mark.parametrize(("name", "angles"), [("acrobot", (0.4, -1.1)), ("pendulum", (2.0,)), ("mountaincar", ())])
def test_gymnasium_draws_the_state_behind_the_observation(name: str, angles: tuple[float, ...]) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    pytest.importorskip("pygame")
    env_id = {"acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1", "mountaincar": "MountainCar-v0"}[name]
    game = gymnasium.make(env_id, render_mode="rgb_array").unwrapped
    game.reset(seed=0)
    rest = (0.3, -0.02)[: len(game.state) - len(angles)]
    game.state = np.array([*angles, *rest])
    seen = [part for angle in angles for part in (math.cos(angle), math.sin(angle))]
    picture = taken(EnvSettings(name), observation=torch.tensor([[*seen, *rest]], dtype=torch.float64))
    assert np.array_equal(picture, game.render())
