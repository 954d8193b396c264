"""LunarLander as a gymnasium vector environment."""

from __future__ import annotations

import warnings

import gymnasium
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.settings import EnvError
from torchrl_reg.envs.snapshot import RecordedVectorEnv


def lunarlander_vector_env(num_envs: int, *, max_episode_frames: int) -> RecordedVectorEnv:
    """``num_envs`` copies of LunarLander-v3, each cut at ``max_episode_frames``; Box2D steps them one after the other.

    Raises:
        EnvError: Box2D is not installed.
    """
    _import_box2d()

    def build() -> gymnasium.Env:
        # Only the environment and its time limit: the checking wrappers cost time at every step.
        env = gymnasium.make("LunarLander-v3", disable_env_checker=True).unwrapped
        return TimeLimit(env, max_episode_steps=max_episode_frames)

    return RecordedVectorEnv(build, num_envs)


def _import_box2d() -> None:
    with warnings.catch_warnings():
        # Box2D's SWIG module warns while it is imported, and crashes the interpreter (a segmentation
        # fault) when a filter turns that warning into an error.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__ attribute", DeprecationWarning)
        try:
            import Box2D  # noqa: F401
        except ImportError as error:
            raise EnvError('env.name=lunarlander needs Box2D, got none: pip install -e ".[box2d]".') from error
