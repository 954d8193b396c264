"""Continuous control: MuJoCo, Adroit, LunarLander."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.settings import check_name, needing

MUJOCO_GAMES = {
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "halfcheetah": "HalfCheetah-v5",
    "ant": "Ant-v5",
    "humanoid": "Humanoid-v5",
    "swimmer": "Swimmer-v5",
    "reacher": "Reacher-v5",
    "inverted_pendulum": "InvertedPendulum-v5",
    "inverted_double_pendulum": "InvertedDoublePendulum-v5",
}


def mujoco_env(*, game: str, max_episode_frames: int = 1_000) -> gymnasium.Env:
    """One MuJoCo task, truncated after ``max_episode_frames`` steps (the published limit of reacher is 50).

    A frame is a step of the task (2 to 5 of the simulator). A fall terminates the episode; ``halfcheetah``,
    ``swimmer`` and ``reacher`` cannot fall.

    Raises:
        ValueError: unknown game, or mujoco is not installed.
    """
    check_name("game", game, MUJOCO_GAMES)
    make = partial(gymnasium.make, MUJOCO_GAMES[game], disable_env_checker=True)
    return float32_env(make, "mujoco", max_episode_frames=max_episode_frames)


def float32_env(make: Callable[[], gymnasium.Env], family: str, *, max_episode_frames: int) -> gymnasium.Env:
    """The environment that ``make`` returns, without wrappers, with float32 observations and a time limit.

    MuJoCo's warnings about deprecated attributes in gymnasium's model files are suppressed: each environment would
    print them and append them to MUJOCO_LOG.TXT in the working directory.

    Raises:
        ValueError: mujoco is not installed; the message names ``family``.
    """
    with needing("mujoco", family, extra=family):
        import mujoco
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(_report)
    try:
        env = make().unwrapped
    finally:
        mujoco.set_mju_user_warning(before)
    space = env.observation_space
    assert isinstance(space, gymnasium.spaces.Box)
    # The buffer of the vector environment has the dtype of this space, so the cast costs no extra copy.
    env.observation_space = gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return TimeLimit(env, max_episode_steps=max_episode_frames)


def _report(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(message, RuntimeWarning, stacklevel=2)


# Palm minus object (door handle, hammer, ball) in metres, from an observation.
_REACH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "door": lambda observation: observation[35:38],
    "hammer": lambda observation: observation[33:36] - observation[36:39],
    "relocate": lambda observation: observation[30:33],
}
ADROIT_GAMES = ("door", "hammer", "pen", "relocate")


class ReachCost(gymnasium.Wrapper):
    """Corrects the sign of the v1 rewards' reach term: ``-0.1 |palm - object|`` instead of ``+0.1``.

    gymnasium-robotics 1.2.1 to 1.4.2 reward the *distance* from palm to door handle, hammer or ball, contrary to
    their documentation and the original tasks (Gymnasium-Robotics pull request 220). The v2 rewards are correct.
    """

    def __init__(self, env: gymnasium.Env, reach: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(env)
        self._reach = reach

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        distance = float(np.linalg.norm(self._reach(observation)))
        return observation, float(reward) - 0.2 * distance, terminated, truncated, info


def adroit_env(*, game: str, max_episode_frames: int = 200) -> gymnasium.Env:
    """One Adroit task, truncated after ``max_episode_frames`` steps; episodes never terminate.

    Raises:
        ValueError: unknown game, or mujoco or gymnasium-robotics is not installed.
    """
    check_name("game", game, ADROIT_GAMES)
    # The import prints a notice about the reward that ReachCost corrects.
    with needing("gymnasium-robotics and mujoco", "adroit", extra="adroit"), contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gymnasium.register_envs(gymnasium_robotics)
    name = f"AdroitHand{game.capitalize()}"
    corrected = f"{name}-v2" in gymnasium.registry
    make = partial(gymnasium.make, f"{name}-v{2 if corrected else 1}", disable_env_checker=True)
    env = float32_env(make, "adroit", max_episode_frames=max_episode_frames)
    return env if corrected or game not in _REACH else ReachCost(env, _REACH[game])


def lunarlander_env(*, max_episode_frames: int = 1_000) -> gymnasium.Env:
    """LunarLander-v3, truncated after ``max_episode_frames`` steps.

    Raises:
        ValueError: Box2D is not installed.
    """
    with warnings.catch_warnings(), needing("Box2D", "lunarlander", extra="box2d"):
        # Importing Box2D emits a warning; a filter that makes it an error crashes the interpreter (segmentation fault).
        warnings.filterwarnings("ignore", "builtin type .* has no __module__ attribute", DeprecationWarning)
        import Box2D  # noqa: F401
    # Without gymnasium's checking wrappers, which cost time at every step.
    env = gymnasium.make("LunarLander-v3", disable_env_checker=True).unwrapped
    return TimeLimit(env, max_episode_steps=max_episode_frames)
