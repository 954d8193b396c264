"""MinAtar, batched."""

from __future__ import annotations

import json
import logging
from typing import Any

import gymnasium
import numpy as np

from torchrl_reg.envs.batched import BatchedEnv
from torchrl_reg.envs.minatar_drawing import DRAWINGS
from torchrl_reg.envs.settings import check_name, needing

_ROW, _CELL = 80, 8
_FULL = (1 << 10 * _ROW) - 1
_COLUMNS = [sum(1 << _ROW * y + _CELL * x for y in range(10)) for x in range(10)]
_WAVE = sum(1 << _ROW * y + _CELL * x for y in range(4) for x in range(2, 8))
# Columns by distance from the cannon, the left of two first.
_NEAREST = [sorted(range(10), key=lambda x, cannon=cannon: abs(x - cannon)) for cannon in range(10)]  # type: ignore[misc]
_SHOT_COOL_DOWN, _MOVE_INTERVAL, _SHOT_INTERVAL = 5, 12, 10


class SpaceInvaders:
    """Space Invaders on bit masks, equal step by step to ``minatar.environments.space_invaders.Env`` and faster.

    It has the attributes that MinAtar's ``Environment`` expects of a game.

    Args:
        ramping: each wave of aliens moves faster than the one before, until a move takes 6 steps.
    """

    def __init__(self, ramping: bool = True) -> None:
        self.ramping = ramping
        self.random = np.random.RandomState()  # seeded by MinAtar; the game itself is deterministic
        self.reset()

    def reset(self) -> None:
        self.pos = 5
        self.friendly_bullets = 0
        self.enemy_bullets = 0
        self.aliens = _WAVE
        self.alien_dir = -1
        self.enemy_move_interval = _MOVE_INTERVAL
        self.alien_move_timer = _MOVE_INTERVAL
        self.alien_shot_timer = _SHOT_INTERVAL
        self.ramp_index = 0
        self.shot_timer = 0
        self.terminal = False

    def act(self, action: int) -> tuple[int, bool]:
        """Plays ``action`` (1 left, 3 right, 5 fire); returns the reward (aliens shot) and the terminal flag."""
        if self.terminal:
            return 0, True
        if action == 5 and self.shot_timer == 0:
            self.friendly_bullets |= 1 << 9 * _ROW + _CELL * self.pos
            self.shot_timer = _SHOT_COOL_DOWN
        elif action == 1:
            self.pos = max(0, self.pos - 1)
        elif action == 3:
            self.pos = min(9, self.pos + 1)
        cannon = 1 << 9 * _ROW + _CELL * self.pos
        self.friendly_bullets >>= _ROW
        self.enemy_bullets = self.enemy_bullets << _ROW & _FULL
        if (self.enemy_bullets | self.aliens) & cannon:
            self.terminal = True
        if self.alien_move_timer == 0:
            self._move_aliens(cannon)
        if self.alien_shot_timer == 0:
            self.alien_shot_timer = _SHOT_INTERVAL
            self._shoot()
        shot = self.aliens & self.friendly_bullets
        self.aliens ^= shot
        self.friendly_bullets ^= shot
        self.shot_timer -= self.shot_timer > 0
        self.alien_move_timer -= 1
        self.alien_shot_timer -= 1
        if not self.aliens:
            if self.enemy_move_interval > 6 and self.ramping:
                self.enemy_move_interval -= 1
                self.ramp_index += 1
            self.aliens = _WAVE
        return shot.bit_count(), self.terminal

    def minimal_action_set(self) -> list[int]:
        return [0, 1, 3, 5]

    def _move_aliens(self, cannon: int) -> None:
        self.alien_move_timer = min(self.aliens.bit_count(), self.enemy_move_interval)
        edge = _COLUMNS[0] if self.alien_dir < 0 else _COLUMNS[9]
        if self.aliens & edge:
            self.alien_dir = -self.alien_dir
            bottom = self.aliens >> 9 * _ROW
            if bottom:
                self.terminal = True
            self.aliens = self.aliens << _ROW & _FULL | bottom
        elif self.alien_dir < 0:
            self.aliens >>= _CELL
        else:
            self.aliens <<= _CELL
        if self.aliens & cannon:
            self.terminal = True

    def _shoot(self) -> None:
        """The lowest alien of the column nearest to the cannon fires."""
        for x in _NEAREST[self.pos]:
            column = self.aliens & _COLUMNS[x]
            if column:
                self.enemy_bullets |= 1 << column.bit_length() - 1
                return


GAMES = tuple(DRAWINGS)
# Attributes of a game that are constant, or saved separately.
_CONSTANTS = ("channels", "action_map", "random")


class MinAtar(BatchedEnv):
    """``N`` copies of one MinAtar game: binary observations ``[N, C, 10, 10]`` (uint8), rewards in points.

    All draws of a copy (sticky actions, spawns, later resets) are determined by its seed, and equal those of the
    package's ``Environment`` after ``seed(seed)`` with ``last_action = 0``.

    Attributes:
        actions: MinAtar's number of each action.

    Raises:
        ValueError: unknown game, or MinAtar is not installed.
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
        self._draw = DRAWINGS[game]
        self.actions = first.minimal_action_set() if minimal_actions else list(range(first.num_actions()))
        shape = (first.n_channels, 10, 10)
        observations = gymnasium.spaces.Box(0, 1, shape, np.uint8)
        super().__init__(num_envs, observations, gymnasium.spaces.Discrete(len(self.actions)), max_episode_frames)

    def _seed(self, i: int, seed: int | None) -> None:
        copy = self._games[i]
        copy.seed(int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed)
        # The package's reset does not clear the action that a sticky first step repeats.
        copy.last_action = 0

    def _begin(self, i: int) -> np.ndarray:
        self._games[i].reset()
        board: np.ndarray = self._draw_boards(self._games[i : i + 1])[0]
        return board

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        played = [copy.act(self.actions[action]) for copy, action in zip(self._games, actions.tolist(), strict=True)]
        reward, terminated = zip(*played, strict=True)
        return self._draw_boards(self._games), np.array(reward, np.float32), np.array(terminated, np.bool_)

    def _draw_boards(self, games: list[Any]) -> np.ndarray:
        shape = self.single_observation_space.shape
        assert shape is not None
        cells = 100 * shape[0]
        picture = bytearray(cells * len(games))
        for start, copy in zip(range(0, len(picture), cells), games, strict=True):
            self._draw(copy.env, picture, start)
        return np.frombuffer(picture, np.uint8).reshape(len(games), *shape)

    def _extra_state(self) -> dict[str, Any]:
        games = [{k: v for k, v in vars(copy.env).items() if k not in _CONSTANTS} for copy in self._games]
        return {
            "games": json.dumps(games, default=lambda value: value.tolist()),
            "last_actions": [int(copy.last_action) for copy in self._games],
            "generators": [copy.random.get_state(legacy=False) for copy in self._games],
        }

    def _set_extra_state(self, state: dict[str, Any]) -> None:
        for copy, last_action, generator, game in zip(
            self._games, state["last_actions"], state["generators"], json.loads(state["games"]), strict=True
        ):
            if copy.env.random is not copy.random:
                copy.seed(0)  # until then, the package's wrapper and its game draw from different generators
            copy.random.set_state(generator)
            copy.last_action = last_action
            for name, value in game.items():
                is_array = isinstance(vars(copy.env)[name], np.ndarray)
                setattr(copy.env, name, np.array(value) if is_array else value)


def _minatar_environment() -> type:
    # Without seaborn, importing the package logs a warning and thereby installs a handler on the root logger.
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with needing("minatar", "minatar", extra="recipes"):
            from minatar import Environment
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
    environment: type = Environment
    return environment
