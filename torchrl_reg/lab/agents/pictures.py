"""RGB pictures of the states of an environment, without a display.

gymnasium draws what it can (``rgb_array``): classic control, LunarLander, MuJoCo, Adroit, any id. MinAtar, Atari and
gridworlds, which have no such drawing, are drawn from what the policy sees. Pictures are uint8 ``[H, W, 3]``.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_reg.envs import EnvSettings
from torchrl_reg.envs.atari import atari_action_names
from torchrl_reg.envs.gridworld import TWO_ROOMS
from torchrl_reg.lab.errors import UserError
from torchrl_reg.tabular import MIRL_WORLDS, gridworld_cells

Picture = NDArray[np.uint8]
#: Pictures of one environment, given the tensordict ``[1]`` of its state.
Camera = Callable[[TensorDictBase], Picture]

HEIGHT = 320  # approximate pixels that small pictures are enlarged to, by whole factors
#: Environment steps shown in a second.
STEPS_PER_SECOND = {"minatar": 8, "atari": 15, "gridworld": 3, "mujoco": 25, "adroit": 25}
_ACTIONS = {
    "cartpole": ("left", "right"),
    "acrobot": ("-1", "0", "+1"),
    "mountaincar": ("left", "noop", "right"),
    "lunarlander": ("noop", "left engine", "main engine", "right engine"),
    "gridworld": ("up", "right", "down", "left"),
}
_MINATAR_ACTIONS = ("noop", "left", "up", "right", "down", "fire")


def camera(settings: EnvSettings, env: EnvBase) -> Camera:
    """The function that takes pictures of ``env``, one environment built from ``settings``.

    Raises:
        UserError: there is no way to draw this environment.
    """
    if settings.name == "minatar":
        return lambda state: _channels(state["observation"][0].numpy())
    if settings.name == "atari":
        return lambda state: _enlarged(np.repeat(state["observation"][0, -1].numpy()[..., None], 3, -1))
    if settings.name == "gridworld":
        layout = TWO_ROOMS.split() if settings.game == "goals" else list(MIRL_WORLDS[settings.game])
        return lambda state: _grid(layout, int(state["state"][0]))
    singles = getattr(getattr(getattr(env, "base_env", env), "_env", None), "envs", None)
    if not singles:
        raise UserError(f"play must know how to draw the environment, got {settings.name!r}.")
    game: Any = singles[0].unwrapped
    game.render_mode = "rgb_array"
    return lambda state: _rendered(game, settings)


def action_names(settings: EnvSettings, env: EnvBase) -> tuple[str, ...]:
    """The name of each action of ``env``, or its number; empty for a box."""
    count = getattr(env.full_action_spec_unbatched["action"].space, "n", 0)
    names = _ACTIONS.get(settings.name, ())
    if settings.name == "minatar":
        names = tuple(_MINATAR_ACTIONS[action] for action in getattr(env, "base_env", env).actions)
    elif settings.name == "atari":
        names = atari_action_names(settings.game, minimal_actions=settings.minimal_actions is not False)
    return names if len(names) == count else tuple(map(str, range(count)))


def draw_without_display() -> None:
    """Chooses graphics that need no screen, where there is none; before the first picture."""
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if not has_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def has_display() -> bool:
    """True if a window could be opened."""
    return os.name == "nt" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _rendered(game: Any, settings: EnvSettings) -> Picture:
    try:
        picture = np.asarray(game.render())
        got = f"shape {list(picture.shape)}"
    except Exception as error:  # whatever an environment that knows no rgb_array or a graphics library throws
        picture, got = np.zeros(0), " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
    if picture.ndim != 3:
        hint = " Without a display it needs EGL (libegl1) or OSMesa (libosmesa6, with MUJOCO_GL=osmesa)."
        raise UserError(
            f"play needs an environment that draws itself (rgb_array), got {settings.game or settings.name!r}, which "
            f"gives {got}.{hint if hasattr(game, 'mujoco_renderer') else ''}"
        )
    return picture.astype(np.uint8)


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
