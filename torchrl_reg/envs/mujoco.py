"""MuJoCo (Todorov et al., 2012; gymnasium's v5 tasks): locomotion and the small control tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.settings import check_name, needing

GAMES = {
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
    """One MuJoCo task, cut at ``max_episode_frames`` steps (reacher is published with 50).

    A frame is a step of the task (2 to 5 of the simulator). A fall terminates; ``halfcheetah``, ``swimmer`` and
    ``reacher`` cannot fall.

    Raises:
        EnvError: unknown game, or mujoco is not installed.
    """
    check_name("game", game, GAMES)
    make = partial(gymnasium.make, GAMES[game], disable_env_checker=True)
    return float32_env(make, "mujoco", max_episode_frames=max_episode_frames)


def float32_env(make: Callable[[], gymnasium.Env], family: str, *, max_episode_frames: int) -> gymnasium.Env:
    """The environment that ``make`` builds, with float32 observations and this time limit; nothing is ever rendered.

    MuJoCo's notes on deprecated attributes of gymnasium's model files are dropped: it would print each, once per
    environment, and append it to a MUJOCO_LOG.TXT where the run was started.

    Raises:
        EnvError: mujoco is not installed; the message names ``family``.
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
    # The vector environment's buffer takes its dtype from here, so the cast costs no extra copy.
    env.observation_space = gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32))
    return TimeLimit(env, max_episode_steps=max_episode_frames)


def _report(message: str) -> None:
    if "deprecated" not in message:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
