"""MinAtar (Young and Tian, 2019) as a gymnasium environment, and vectors of it.

The package's own gymnasium adapter needs seaborn and gives boolean images with the channels last.
"""

from __future__ import annotations

import logging
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.settings import EnvError, unknown_name
from torchrl_reg.envs.snapshot import RecordedVectorEnv

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")


class MinAtarGame(gymnasium.Env):
    """One MinAtar game: observations uint8 ``[C, 10, 10]`` of zeros and ones, raw rewards.

    Seeding a reset makes every later draw (sticky actions, spawns, later resets) a function of the
    seed.
    """

    def __init__(
        self,
        game: str,
        *,
        sticky_actions: float = 0.1,
        minimal_actions: bool = True,
        difficulty_ramping: bool = True,
    ) -> None:
        self._game = _minatar_environment()(
            game, sticky_action_prob=sticky_actions, difficulty_ramping=difficulty_ramping
        )
        height, width, channels = self._game.state_shape()
        self._actions = self._game.minimal_action_set() if minimal_actions else list(range(self._game.num_actions()))
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))
        self.observation_space = gymnasium.spaces.Box(0, 1, (channels, height, width), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._game.seed(seed)
            # The action a first sticky step would repeat survives the package's own reset.
            self._game.last_action = 0
        self._game.reset()
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, terminated = self._game.act(self._actions[action])
        return self._observation(), float(reward), bool(terminated), False, {}

    def random_state(self) -> dict[str, Any]:
        """What outlives a reset: the generator, and the action that a first sticky step repeats."""
        return {"generator": self._game.random.get_state(legacy=False), "last_action": self._game.last_action}

    def set_random_state(self, state: dict[str, Any]) -> None:
        self._game.seed(0)  # until it is seeded, the package's wrapper and its game draw from different generators
        self._game.random.set_state(state["generator"])
        self._game.last_action = state["last_action"]

    def _observation(self) -> np.ndarray:
        return self._game.state().transpose(2, 0, 1).astype(np.uint8)


def minatar_vector_env(
    num_envs: int,
    *,
    game: str,
    max_episode_frames: int,
    sticky_actions: float,
    minimal_actions: bool,
    difficulty_ramping: bool,
) -> RecordedVectorEnv:
    """``num_envs`` copies of one MinAtar game, each cut at ``max_episode_frames``.

    Raises:
        EnvError: unknown game, or MinAtar is not installed.
    """
    if game not in GAMES:
        raise EnvError(unknown_name("game", game, GAMES))

    def build() -> gymnasium.Env:
        env = MinAtarGame(
            game,
            sticky_actions=sticky_actions,
            minimal_actions=minimal_actions,
            difficulty_ramping=difficulty_ramping,
        )
        return TimeLimit(env, max_episode_steps=max_episode_frames)

    return RecordedVectorEnv(build, num_envs)


def _minatar_environment() -> type:
    # Where seaborn is absent the package logs, at import, that it cannot draw, and so installs a
    # handler on the root logger.
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        from minatar import Environment
    except ImportError as error:
        raise EnvError('minatar is not installed: pip install -e ".[recipes]".') from error
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
    return Environment
