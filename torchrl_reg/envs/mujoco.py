"""MuJoCo locomotion (Todorov et al., 2012; gymnasium's v5 tasks), and float32 vectors of MuJoCo models."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.settings import EnvError, unknown_name
from torchrl_reg.envs.snapshot import RecordedVectorEnv

GAMES = {
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "halfcheetah": "HalfCheetah-v5",
    "ant": "Ant-v5",
    "humanoid": "Humanoid-v5",
}


def mujoco_vector_env(num_envs: int, *, game: str, max_episode_frames: int) -> RecordedVectorEnv:
    """``num_envs`` copies of one locomotion task, each cut at ``max_episode_frames`` steps.

    A frame is a step of the task (4 or 5 of the simulator). A fall terminates; ``halfcheetah`` cannot fall.

    Raises:
        EnvError: unknown game, or mujoco is not installed.
    """
    if game not in GAMES:
        raise EnvError(unknown_name("game", game, GAMES))

    def make() -> gymnasium.Env:
        return gymnasium.make(GAMES[game], disable_env_checker=True).unwrapped

    return float32_vector_env(make, num_envs, max_episode_frames=max_episode_frames, extra="mujoco")


def float32_vector_env(
    make: Callable[[], gymnasium.Env], num_envs: int, *, max_episode_frames: int, extra: str
) -> RecordedVectorEnv:
    """``num_envs`` environments that ``make`` builds, with float32 observations; nothing is ever rendered.

    Raises:
        EnvError: mujoco is not installed; the message names ``extra``.
    """
    mujoco = _import_mujoco(extra)

    def build() -> gymnasium.Env:
        env = make()
        # The vector environment's buffer takes its dtype from here, so the cast costs no extra copy.
        env.observation_space = _as_float32(env.observation_space)
        return TimeLimit(env, max_episode_steps=max_episode_frames)

    with _quiet_model_files(mujoco):
        return RecordedVectorEnv(build, num_envs)


def _as_float32(space: gymnasium.Space) -> gymnasium.spaces.Box:
    assert isinstance(space, gymnasium.spaces.Box)
    return gymnasium.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def _import_mujoco(extra: str) -> ModuleType:
    try:
        import mujoco
    except ImportError as error:
        raise EnvError(f'env.name={extra} needs mujoco, got none: pip install -e ".[{extra}]".') from error
    return mujoco


@contextmanager
def _quiet_model_files(mujoco: ModuleType) -> Iterator[None]:
    """Drops MuJoCo's notes on deprecated attributes of gymnasium's model files.

    MuJoCo would print each, once per environment, and append it to a MUJOCO_LOG.TXT where the run was started.
    """

    def report(message: str) -> None:
        if "deprecated" not in message:
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(report)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
