"""MinAtar (Young and Tian, 2019): all copies of a game step in one call and are drawn into one array.

The games are the package's own, which keep their objects in lists; drawing them, and the layers around them, took most
of the time. Only Space Invaders, whose numpy calls on single boards took ten times as long as the others, is
reimplemented, by :class:`SpaceInvaders`. The package's gymnasium adapter needs seaborn and gives boolean images with
the channels last.

Shapes: ``N`` copies, ``C`` channels of 10 x 10 cells.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from torchrl_reg.envs.batched import BatchedEnv
from torchrl_reg.envs.minatar_drawing import DRAWINGS
from torchrl_reg.envs.settings import check_name, needing
from torchrl_reg.envs.space_invaders import SpaceInvaders

GAMES = tuple(DRAWINGS)
# What a game holds that never changes, or is saved apart.
_CONSTANTS = ("channels", "action_map", "random")


class MinAtar(BatchedEnv):
    """``N`` copies of one MinAtar game: observations uint8 ``[N, C, 10, 10]`` of zeros and ones, rewards in points.

    Every draw of a copy (sticky actions, spawns, later resets) is a function of its seed, and that of the package's
    ``Environment`` after ``seed(seed)`` with ``last_action = 0``.

    Raises:
        EnvError: unknown game, or MinAtar is not installed.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        game: str,
        max_episode_frames: int = 10_000,
        sticky_actions: float = 0.1,
        minimal_actions: bool = True,
        difficulty_ramping: bool = True,
    ) -> None:
        check_name("game", game, GAMES)
        build = _minatar_environment()
        self._games = [
            build(game, sticky_action_prob=sticky_actions, difficulty_ramping=difficulty_ramping)
            for _ in range(num_envs)
        ]
        if game == "space_invaders":
            for copy in self._games:
                copy.env = SpaceInvaders(ramping=difficulty_ramping)
        first = self._games[0]
        self._draw: Callable[[Any, bytearray, int], None] = DRAWINGS[game]
        self._actions = first.minimal_action_set() if minimal_actions else list(range(first.num_actions()))
        shape = (first.n_channels, 10, 10)
        observations = gymnasium.spaces.Box(0, 1, shape, np.uint8)
        super().__init__(num_envs, observations, gymnasium.spaces.Discrete(len(self._actions)), max_episode_frames)

    def _seed(self, i: int, seed: int | None) -> None:
        copy = self._games[i]
        copy.seed(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)
        # The action a first sticky step would repeat survives the package's own reset.
        copy.last_action = 0

    def _begin(self, i: int) -> np.ndarray:
        self._games[i].reset()
        return self._drawn(self._games[i : i + 1])[0]

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        played = [copy.act(self._actions[action]) for copy, action in zip(self._games, actions.tolist(), strict=True)]
        reward, terminated = zip(*played, strict=True)
        return self._drawn(self._games), np.array(reward, np.float32), np.array(terminated, np.bool_)

    def _drawn(self, games: list[Any]) -> np.ndarray:
        shape = self.single_observation_space.shape
        assert shape is not None
        cells = 100 * shape[0]
        picture = bytearray(cells * len(games))
        for start, copy in zip(range(0, len(picture), cells), games, strict=True):
            self._draw(copy.env, picture, start)
        return np.frombuffer(picture, np.uint8).reshape(len(games), *shape)

    def _held(self) -> dict[str, Any]:
        games = [{k: v for k, v in vars(copy.env).items() if k not in _CONSTANTS} for copy in self._games]
        return {
            "games": json.dumps(games, default=lambda value: value.tolist()),
            "last_actions": [int(copy.last_action) for copy in self._games],
            "generators": [copy.random.get_state(legacy=False) for copy in self._games],
        }

    def _hold(self, held: dict[str, Any]) -> None:
        for copy, last_action, generator, game in zip(
            self._games, held["last_actions"], held["generators"], json.loads(held["games"]), strict=True
        ):
            if copy.env.random is not copy.random:
                copy.seed(0)  # until it is seeded, the package's wrapper and its game draw from different generators
            copy.random.set_state(generator)
            copy.last_action = last_action
            for name, value in game.items():
                is_array = isinstance(vars(copy.env)[name], np.ndarray)
                setattr(copy.env, name, np.array(value) if is_array else value)


def _minatar_environment() -> type:
    # Where seaborn is absent the package logs, at import, that it cannot draw, and so installs a
    # handler on the root logger.
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with needing("minatar", "minatar", extra="recipes"):
            from minatar import Environment
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
    return Environment
