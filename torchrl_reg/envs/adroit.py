"""The Adroit hand (Rajeswaran et al., 2018) from gymnasium-robotics, with the dense rewards of its authors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from torchrl_reg.envs.mujoco import float32_env
from torchrl_reg.envs.settings import check_name, needing

# Palm minus object (door handle, hammer, ball) in metres, from an observation.
_REACH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "door": lambda observation: observation[35:38],
    "hammer": lambda observation: observation[33:36] - observation[36:39],
    "relocate": lambda observation: observation[30:33],
}
GAMES = ("door", "hammer", "pen", "relocate")


class ReachCost(gymnasium.Wrapper):
    """Corrects the sign of the v1 rewards' reach term: ``-0.1 |palm - object|`` instead of ``+0.1``.

    gymnasium-robotics 1.2.1 to 1.4.2 pay the hand for keeping *away* from door handle, hammer and ball, against
    their own documentation and the original tasks (Gymnasium-Robotics pull request 220); v2 has it right.
    """

    def __init__(self, env: gymnasium.Env, reach: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(env)
        self._reach = reach

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        distance = float(np.linalg.norm(self._reach(observation)))
        return observation, float(reward) - 0.2 * distance, terminated, truncated, info


def adroit_env(*, game: str, max_episode_frames: int = 200) -> gymnasium.Env:
    """One Adroit task, cut at ``max_episode_frames`` steps; none ever terminates.

    Raises:
        EnvError: unknown game, or mujoco or gymnasium-robotics is not installed.
    """
    check_name("game", game, GAMES)
    # Its import prints a notice about the reward that ReachCost corrects.
    with needing("gymnasium-robotics and mujoco", "adroit", extra="adroit"), contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gymnasium.register_envs(gymnasium_robotics)
    name = f"AdroitHand{game.capitalize()}"
    corrected = f"{name}-v2" in gymnasium.registry
    make = partial(gymnasium.make, f"{name}-v{2 if corrected else 1}", disable_env_checker=True)
    env = float32_env(make, "adroit", max_episode_frames=max_episode_frames)
    return env if corrected or game not in _REACH else ReachCost(env, _REACH[game])
