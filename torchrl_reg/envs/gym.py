"""Registered gymnasium environments, with observations and actions in the form that networks and policies expect."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, flatten, flatten_space
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TransformAction, TransformObservation

from torchrl_reg.envs.settings import EnvSettings
from torchrl_reg.envs.snapshot import RecordedVectorEnv

Make = Callable[[], gymnasium.Env]
_PROBE_STEPS = 16
#: Results of :func:`_is_repeatable`, by id and arguments.
_REPEATABLE: dict[str, bool] = {}


def gym_vector_env(num_envs: int, *, game: str, kwargs: Mapping[str, Any], max_episode_frames: int) -> SyncVectorEnv:
    """``num_envs`` copies of the environment with the gymnasium id ``game``, built with ``kwargs``.

    Observations are float32 vectors (``Discrete`` and ``MultiDiscrete`` one-hot, boxes flattened), or channels-first
    images for boxes of three dimensions and uint8 boxes of two. Actions are integers from 0, or float32 vectors.

    If replaying its actions restores the environment, the copies are a :class:`RecordedVectorEnv`, which can be saved
    in a checkpoint; otherwise they cannot be restored.

    Raises:
        ValueError: an unknown id, bad ``kwargs``, unsupported spaces, or a missing package.
    """
    make = partial(_make_one, game, kwargs, max_episode_frames)
    if _is_repeatable(game, kwargs, max_episode_frames):
        return RecordedVectorEnv(make, num_envs)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def defaults_of(settings: EnvSettings) -> dict[str, int]:
    """The time limit with which the id is registered.

    Raises:
        ValueError: an unknown id, or no limit in its registration nor in the settings.
    """
    limit, given = _spec(settings.game).max_episode_steps, settings.max_episode_frames
    if limit is None and given is None:
        raise ValueError(f"max_episode_frames must be set for {settings.game!r}, which has no time limit, got None.")
    return {} if limit is None else {"max_episode_frames": limit}


def _spec(game: str) -> EnvSpec:
    if game not in gymnasium.registry:  # gymnasium.spec("module:id") would import the module
        namespace = game.rpartition("/")[0]
        near = difflib.get_close_matches(game, [i for i in gymnasium.registry if i.rpartition("/")[0] == namespace], 1)
        hint = f" Did you mean {near[0]!r}?" if near else " A package that registers it goes in env.import_module."
        raise ValueError(f"game must be a gymnasium id, such as 'CartPole-v1', got {game!r}.{hint}")
    return gymnasium.registry[game]


def _make_one(game: str, kwargs: Mapping[str, Any], limit: int) -> gymnasium.Env:
    try:
        env = gymnasium.make(game, max_episode_steps=limit, disable_env_checker=True, **kwargs)
    except (ImportError, gymnasium.error.Error) as error:
        raise ValueError(
            f"game must be an environment that can be built here, got {game!r}: {_summary(error)}"
        ) from error
    except Exception as error:
        if not kwargs:
            raise
        raise ValueError(f"kwargs must be arguments of {game!r}, got {dict(kwargs)}: {_summary(error)}") from error
    return _adapt_actions(_adapt_observations(env, game), game)


def _summary(error: Exception) -> str:
    message = " ".join(str(error).split()).rstrip(".")[:200]
    return f"{type(error).__name__}: {message}." if message else f"{type(error).__name__}."


def _adapt_observations(env: gymnasium.Env, game: str) -> gymnasium.Env:
    space = env.observation_space
    if isinstance(space, Box) and (len(space.shape) == 3 or len(space.shape) == 2 and space.dtype == np.uint8):
        return TransformObservation(env, *_image_transform(space))
    if not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        kinds = "Box, Discrete, MultiDiscrete or MultiBinary"
        raise ValueError(
            f"game must have observations in a {kinds} space, got {game!r} with {type(space).__name__}: "
            "gymnasium.wrappers.FlattenObservation, applied where the id is registered, turns them into vectors."
        )
    if isinstance(space, Box) and len(space.shape) == 1 and space.dtype == np.float32:
        return env
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    return TransformObservation(env, lambda value: np.asarray(flatten(space, value), np.float32), _float32_box(flat))


def _image_transform(space: Box) -> tuple[Callable[[np.ndarray], np.ndarray], Box]:
    """A function that converts images to ``[C, H, W]``, uint8 for bool and uint8, else float32, and their space."""
    dtype: Any = np.uint8 if space.dtype in (np.uint8, np.bool_) else np.float32
    channels_last = len(space.shape) == 3 and space.shape[-1] <= space.shape[0]

    def image(value: np.ndarray) -> np.ndarray:
        value = np.asarray(value)
        value = value[None] if value.ndim == 2 else np.moveaxis(value, -1, 0) if channels_last else value
        return np.ascontiguousarray(value, dtype)

    with np.errstate(over="ignore"):
        return image, Box(image(space.low), image(space.high), dtype=dtype)


def _float32_box(space: Box) -> Box:
    with np.errstate(over="ignore"):  # the largest float64 becomes inf
        return Box(space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel())


def _adapt_actions(env: gymnasium.Env, game: str) -> gymnasium.Env:
    space = env.action_space
    if isinstance(space, Discrete):
        first, from_zero = space.start, Discrete(int(space.n))
        return env if first == 0 else TransformAction(env, lambda action: action + first, from_zero)
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"game must have Discrete actions or a Box of real ones, got {game!r} with {space}.")
    if len(space.shape) == 1 and space.dtype == np.float32:
        return env

    def to_space(action: np.ndarray) -> np.ndarray:
        # Bounds of a float64 box, rounded to float32, can lie outside of it.
        return np.clip(np.reshape(action, space.shape).astype(space.dtype), space.low, space.high)

    return TransformAction(env, to_space, _float32_box(space))


def _is_repeatable(game: str, kwargs: Mapping[str, Any], limit: int) -> bool:
    """True if replaying the actions since the last reset restores a copy, as tried once per id and arguments."""
    key = repr((_spec(game), kwargs, limit))
    if key not in _REPEATABLE:
        _REPEATABLE[key] = not _spec(game).nondeterministic and _replay_restores(
            partial(_make_one, game, kwargs, limit)
        )
    return _REPEATABLE[key]


def _replay_restores(make: Make) -> bool:
    """True if a second copy, restored by replay, continues like the first one.

    Tried after a reset with and without a seed, and with a second copy that has another history, to detect
    environments that ignore seeds or draw from other generators than ``np_random``.
    """
    one, other = RecordedVectorEnv(make, 1), RecordedVectorEnv(make, 1)
    one.action_space.seed(0)
    actions = [one.action_space.sample() for _ in range(_PROBE_STEPS)]
    try:
        one.reset(seed=1)
        for _ in range(2):
            _trace(one, actions)
            other.reset(seed=2)
            _trace(other, actions[::2])
            if not other.restore(one.snapshot()):
                return False
            # Later episodes must be the same, too.
            expected, got = ([*_trace(env, actions), env.reset()[0], *_trace(env, actions)] for env in (one, other))
            if len(expected) != len(got) or not all(map(np.array_equal, expected, got)):
                return False
    finally:
        one.close()
        other.close()
    return True


def _trace(env: SyncVectorEnv, actions: list[Any]) -> list[Any]:
    """Observations, rewards and flags of ``actions``, with the first observations of new episodes."""
    trace: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        trace += [observation, reward, terminated, truncated]
        if (done := terminated | truncated).any():
            trace.append(env.reset(options={"reset_mask": done})[0])
    return trace
