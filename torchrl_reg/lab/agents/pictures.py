"""What an environment looks like: an RGB picture of each state, without a display.

Where the observation says everything (classic control, MinAtar, Atari, gridworlds) the picture is made from it;
LunarLander and MuJoCo are asked to draw themselves. Pictures are uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_reg.envs import EnvSettings
from torchrl_reg.envs.gridworld import TWO_ROOMS
from torchrl_reg.lab.errors import AgentError
from torchrl_reg.tabular import MIRL_WORLDS, gridworld_cells

Picture = NDArray[np.uint8]
#: Pictures of one environment, given the tensordict ``[1]`` of its state.
Camera = Callable[[TensorDictBase], Picture]

HEIGHT = 320  # approximate pixels of a picture: small ones are enlarged by whole factors
#: Environment steps shown in a second.
STEPS_PER_SECOND = {"minatar": 8, "atari": 15, "gridworld": 3, "mujoco": 25, "adroit": 25}
#: Gymnasium's name, and how many angles its observation begins with, each as cosine and sine.
_CLASSIC = {
    "cartpole": ("CartPole-v1", 0),
    "acrobot": ("Acrobot-v1", 2),
    "pendulum": ("Pendulum-v1", 1),
    "mountaincar": ("MountainCar-v0", 0),
    "mountaincar_continuous": ("MountainCarContinuous-v0", 0),
}
_ACTIONS = {
    "cartpole": ("left", "right"),
    "acrobot": ("-1", "0", "+1"),
    "mountaincar": ("left", "nothing", "right"),
    "lunarlander": ("nothing", "left engine", "main engine", "right engine"),
    "gridworld": ("up", "right", "down", "left"),
}


def camera(settings: EnvSettings, env: EnvBase) -> Camera:
    """What takes pictures of ``env``, one environment built from ``settings``.

    Raises:
        AgentError: what draws it is not installed, or there is no way to draw this environment.
    """
    if settings.name in _CLASSIC:
        return _classic_camera(*_CLASSIC[settings.name])
    if settings.name == "minatar":
        return lambda state: _channels(state["observation"][0].numpy())
    if settings.name == "atari":
        return lambda state: _enlarged(np.repeat(state["observation"][0, -1].numpy()[..., None], 3, -1))
    if settings.name == "gridworld":
        layout = TWO_ROOMS.split() if settings.game == "goals" else list(MIRL_WORLDS[settings.game])
        return lambda state: _grid(layout, int(state["state"][0]))
    return _own_camera(settings, env)


def action_names(settings: EnvSettings, count: int) -> tuple[str, ...]:
    """What the actions do, or their numbers."""
    names = _ACTIONS.get(settings.name, ())
    return names if len(names) == count else tuple(map(str, range(count)))


def _classic_camera(env_id: str, angles: int) -> Camera:
    """Gymnasium's drawing of a state that the observation gives."""
    _needs("pygame", "recipes")
    game: Any = gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True).unwrapped
    game.reset(seed=0)

    def draw(state: TensorDictBase) -> Picture:
        seen = state["observation"][0].tolist()
        pairs = zip(seen[: 2 * angles : 2], seen[1 : 2 * angles : 2], strict=True)
        game.state = np.array([*(math.atan2(sine, cosine) for cosine, sine in pairs), *seen[2 * angles :]])
        if hasattr(game, "last_u") and "action" in state:
            game.last_u = float(state["action"][0, 0])  # the pendulum shows its torque
        return np.asarray(game.render(), np.uint8)

    return draw


def _own_camera(settings: EnvSettings, env: EnvBase) -> Camera:
    """Gymnasium's drawing of the environment itself: LunarLander, MuJoCo, Adroit, what has a gymnasium id."""
    games = getattr(getattr(getattr(env, "base_env", env), "_env", None), "envs", None)
    if not games:
        raise AgentError(f"play must know how to draw the environment, got {settings.name!r}.")
    game: Any = games[0].unwrapped
    game.render_mode = "rgb_array"
    if hasattr(game, "mujoco_renderer"):
        game.mujoco_renderer.width = game.mujoco_renderer.height = HEIGHT
        try:
            game.render()
        except Exception as error:  # whatever the graphics library throws
            raise AgentError(
                f"MuJoCo must be able to draw here, got {type(error).__name__}: without a display it needs EGL "
                "(libegl1) or OSMesa (libosmesa6, with MUJOCO_GL=osmesa)."
            ) from error
    else:
        _needs("pygame", "recipes")
    return lambda state: _drawn(game, settings)


def _drawn(game: Any, settings: EnvSettings) -> Picture:
    try:
        picture = np.asarray(game.render())
    except Exception as error:  # whatever an environment throws that knows no rgb_array
        picture = np.asarray(type(error).__name__)
    if picture.ndim != 3:
        shown, got = settings.game or settings.name, picture if picture.ndim == 0 else f"shape {list(picture.shape)}"
        raise AgentError(f"play needs an environment that draws itself (rgb_array), got {shown!r}, which gives {got}.")
    return picture.astype(np.uint8)


def draw_without_display() -> None:
    """Chooses graphics that need no screen, where there is none; before the first picture."""
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def has_display() -> bool:
    """Whether a window could be opened."""
    return os.name == "nt" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _channels(observation: NDArray[Any]) -> Picture:
    """MinAtar's ``[C, 10, 10]`` of zeros and ones: a colour a channel, later channels on top."""
    count, height, width = observation.shape
    picture = np.zeros((height, width, 3), np.uint8)
    for channel in range(count):
        colour = colorsys.hsv_to_rgb(channel / count, 0.75, 1.0)
        picture[observation[channel] > 0] = [round(255 * part) for part in colour]
    return _enlarged(picture)


def _grid(layout: list[str], state: int) -> Picture:
    """Walls, cells, goals, and where the agent is; a state beyond the cells means another goal (``goals``)."""
    cells = gridworld_cells(layout)
    places = [i for i, (row, column) in enumerate(cells) if layout[row][column] == "G"]
    goal = places[state // len(cells)]
    picture = np.full((len(layout), len(layout[0]), 3), 60, np.uint8)
    for index, (row, column) in enumerate(cells):
        picture[row, column] = (60, 170, 90) if index == goal else (235, 235, 230)
    row, column = cells[state % len(cells)]
    picture[row, column] = (40, 90, 200)
    return _enlarged(picture)


def _enlarged(picture: Picture) -> Picture:
    scale = max(1, HEIGHT // max(picture.shape[:2]))
    return picture.repeat(scale, 0).repeat(scale, 1)


def _needs(module: str, extra: str) -> None:
    try:
        __import__(module)
    except ImportError:
        hint = f"pip install 'torchrl_reg[{extra}]'"
        raise AgentError(f"play needs {module} for this environment, got none: {hint}.") from None
