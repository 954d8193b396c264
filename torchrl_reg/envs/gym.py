"""Any registered gymnasium environment, with observations and actions as the networks and policies here take them."""

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
_PROBED_STEPS = 16
#: What the trials found, by what was built.
_REPEATABLE: dict[str, bool] = {}


def gym_vector_env(num_envs: int, *, game: str, kwargs: Mapping[str, Any], max_episode_frames: int) -> SyncVectorEnv:
    """``num_envs`` copies of the environment with the gymnasium id ``game``, built with ``kwargs``.

    Observations are float32 vectors (``Discrete`` and ``MultiDiscrete`` ones one-hot, boxes flattened) or images with
    the channels first: boxes of three dimensions, or of two if uint8. Actions are integers from 0, or float32 vectors.

    The copies are a :class:`RecordedVectorEnv`, which a checkpoint can hold, if two of them repeat each other after a
    reset; else nothing can restore them.

    Raises:
        ValueError: an unknown id, ``kwargs`` it does not take, other spaces, or a package that is not installed.
    """
    make = partial(_one, game, kwargs, max_episode_frames)
    if _is_repeatable(game, kwargs, max_episode_frames):
        return RecordedVectorEnv(make, num_envs)
    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def defaults_of(settings: EnvSettings) -> dict[str, int]:
    """The time limit that the id was registered with.

    Raises:
        ValueError: an unknown id, or one without a limit where the settings have none.
    """
    limit, given = _spec(settings.game).max_episode_steps, settings.max_episode_frames
    if limit is None and given is None:
        raise ValueError(f"max_episode_frames must be set for {settings.game!r}, which has no time limit, got None.")
    return {} if limit is None else {"max_episode_frames": limit}


def _spec(game: str) -> EnvSpec:
    if game not in gymnasium.registry:  # gymnasium.spec would import what stands before a colon
        namespace = game.rpartition("/")[0]
        near = difflib.get_close_matches(game, [i for i in gymnasium.registry if i.rpartition("/")[0] == namespace], 1)
        hint = f" Did you mean {near[0]!r}?" if near else " A package that registers it goes in env.import_module."
        raise ValueError(f"game must be a gymnasium id, such as 'CartPole-v1', got {game!r}.{hint}")
    return gymnasium.registry[game]


def _one(game: str, kwargs: Mapping[str, Any], limit: int) -> gymnasium.Env:
    try:
        env = gymnasium.make(game, max_episode_steps=limit, disable_env_checker=True, **kwargs)
    except (ImportError, gymnasium.error.Error) as error:
        raise ValueError(f"game must be an environment that can be built here, got {game!r}: {_line(error)}") from error
    except Exception as error:
        if not kwargs:
            raise
        raise ValueError(f"kwargs must be what {game!r} takes, got {dict(kwargs)}: {_line(error)}") from error
    return _acting(_observed(env, game), game)


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")[:200]
    return f"{type(error).__name__}: {said}." if said else f"{type(error).__name__}."


def _observed(env: gymnasium.Env, game: str) -> gymnasium.Env:
    space = env.observation_space
    if isinstance(space, Box) and (len(space.shape) == 3 or len(space.shape) == 2 and space.dtype == np.uint8):
        return TransformObservation(env, *_as_image(space))
    if not isinstance(space, Box | Discrete | MultiDiscrete | MultiBinary):
        kinds = "Box, Discrete, MultiDiscrete or MultiBinary"
        raise ValueError(
            f"game must have observations in a {kinds} space, got {game!r} with {type(space).__name__}: "
            "gymnasium.wrappers.FlattenObservation, where the id is registered, makes them vectors."
        )
    if isinstance(space, Box) and len(space.shape) == 1 and space.dtype == np.float32:
        return env
    flat = flatten_space(space)
    assert isinstance(flat, Box)
    return TransformObservation(env, lambda seen: np.asarray(flatten(space, seen), np.float32), _float32(flat))


def _as_image(space: Box) -> tuple[Callable[[Any], Any], Box]:
    """What makes ``[C, H, W]`` of an image, zeros and ones and bytes as uint8, and the space of the result."""
    dtype: Any = np.uint8 if space.dtype in (np.uint8, np.bool_) else np.float32
    last = len(space.shape) == 3 and space.shape[-1] <= space.shape[0]  # as gymnasium's images have their channels

    def image(seen: Any) -> Any:
        seen = np.asarray(seen)
        seen = seen[None] if seen.ndim == 2 else np.moveaxis(seen, -1, 0) if last else seen
        return np.ascontiguousarray(seen, dtype)

    with np.errstate(over="ignore"):
        return image, Box(image(space.low), image(space.high), dtype=dtype)


def _float32(space: Box) -> Box:
    with np.errstate(over="ignore"):  # the largest float64 is infinite
        return Box(space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel())


def _acting(env: gymnasium.Env, game: str) -> gymnasium.Env:
    space = env.action_space
    if isinstance(space, Discrete):
        first, plain = space.start, Discrete(int(space.n))
        return env if first == 0 else TransformAction(env, lambda action: action + first, plain)
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"game must have Discrete actions or a Box of real ones, got {game!r} with {space}.")
    if len(space.shape) == 1 and space.dtype == np.float32:
        return env

    def shaped(action: Any) -> Any:
        # A bound of a float64 box, rounded to float32, may lie outside.
        return np.clip(np.reshape(action, space.shape).astype(space.dtype), space.low, space.high)

    return TransformAction(env, shaped, _float32(space))


def _is_repeatable(game: str, kwargs: Mapping[str, Any], limit: int) -> bool:
    key = repr((_spec(game), kwargs, limit))
    if key not in _REPEATABLE:
        _REPEATABLE[key] = not _spec(game).nondeterministic and _repeats(partial(_one, game, kwargs, limit))
    return _REPEATABLE[key]


def _repeats(make: Make) -> bool:
    """Whether a copy can be brought to where another one is by replaying what that one did since its last reset.

    Tried after a reset with a seed and after one without, on a copy with another past: this finds environments that
    ignore seeds, or draw from a generator of their own.
    """
    one, other = RecordedVectorEnv(make, 1), RecordedVectorEnv(make, 1)
    one.action_space.seed(0)
    actions = [one.action_space.sample() for _ in range(_PROBED_STEPS)]
    try:
        one.reset(seed=1)
        for _ in range(2):
            _walk(one, actions)
            other.reset(seed=2)
            _walk(other, actions[::2])
            if not other.restore(one.snapshot()):
                return False
            # The episodes after this one are part of what has to be the same.
            here, there = ([*_walk(env, actions), env.reset()[0], *_walk(env, actions)] for env in (one, other))
            if len(here) != len(there) or not all(map(np.array_equal, here, there)):
                return False
    finally:
        one.close()
        other.close()
    return True


def _walk(env: SyncVectorEnv, actions: list[Any]) -> list[Any]:
    """All that is seen on a walk, resets included."""
    seen: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen += [observation, reward, terminated, truncated]
        if (done := terminated | truncated).any():
            seen.append(env.reset(options={"reset_mask": done})[0])
    return seen
