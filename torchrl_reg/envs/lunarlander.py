"""LunarLander of gymnasium, which Box2D simulates."""

from __future__ import annotations

import warnings

import gymnasium
from gymnasium.wrappers import TimeLimit

from torchrl_reg.envs.settings import needing


def lunarlander_env(*, max_episode_frames: int = 1_000) -> gymnasium.Env:
    """One LunarLander-v3, cut at ``max_episode_frames``.

    Raises:
        EnvError: Box2D is not installed.
    """
    with warnings.catch_warnings(), needing("Box2D", "lunarlander", extra="box2d"):
        # Box2D's SWIG module warns while it is imported, and crashes the interpreter (a segmentation
        # fault) when a filter turns that warning into an error.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__ attribute", DeprecationWarning)
        import Box2D  # noqa: F401
    # Only the environment and its time limit: the checking wrappers cost time at every step.
    env = gymnasium.make("LunarLander-v3", disable_env_checker=True).unwrapped
    return TimeLimit(env, max_episode_steps=max_episode_frames)
