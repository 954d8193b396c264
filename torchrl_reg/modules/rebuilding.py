"""Networks that store how they were built, so that a saved one can be rebuilt without its environment.

A builder marked :func:`rebuildable` stores its import path and arguments on the module it returns.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

Builder = TypeVar("Builder", bound=Callable[..., Any])


@dataclass(frozen=True)
class Spaces:
    """Shapes and dtypes of an environment's spaces, which replace it as an argument of network builders.

    Args:
        observations: key -> shape of one observation and its dtype, ``"float32"``.
        num_actions: A of a discrete action; None for a continuous one.
        low, high: bounds ``[D]`` of a continuous action, without batch dimensions.
    """

    is_rebuildable: ClassVar[bool] = True

    observations: dict[str, tuple[list[int], str]]
    num_actions: int | None
    low: list[float]
    high: list[float]

    def __post_init__(self) -> None:
        actions = self.num_actions is None or isinstance(self.num_actions, int) and self.num_actions >= 1
        if not actions:
            raise ValueError(f"num_actions must be an integer >= 1 or None, got {self.num_actions!r}.")
        for key, (shape, dtype) in self.observations.items():
            if not isinstance(getattr(torch, dtype, None), torch.dtype):
                raise ValueError(f"The dtype of {key} must be one of torch, got {dtype!r}.")
            if any(not isinstance(size, int) or size < 0 for size in shape):
                raise ValueError(f"The shape of {key} must be sizes >= 0, got {shape}.")

    @classmethod
    def from_env(cls, env: EnvBase | Spaces) -> Spaces:
        """The spaces of ``env``, without its batch size."""
        if isinstance(env, Spaces):
            return env
        batch = len(env.batch_size)
        leaves = {key: env.observation_spec[key] for key in list(env.observation_spec)}
        observations = {key: (list(s.shape[batch:]), str(s.dtype).removeprefix("torch.")) for key, s in leaves.items()}
        space = env.full_action_spec_unbatched["action"].space
        if hasattr(space, "n"):
            return cls(observations, int(space.n), [], [])
        return cls(observations, None, space.low.tolist(), space.high.tolist())

    @property
    def batch_size(self) -> torch.Size:
        """Empty: one environment."""
        return torch.Size()

    @property
    def observation_spec(self) -> Composite:
        """Unbounded observations of these shapes and dtypes."""
        leaves = {k: Unbounded(torch.Size(s), dtype=getattr(torch, d)) for k, (s, d) in self.observations.items()}
        return Composite(**leaves)

    @property
    def full_action_spec_unbatched(self) -> dict[str, TensorSpec]:
        """``{"action": spec}``."""
        if self.num_actions is not None:
            return {"action": Categorical(self.num_actions, dtype=torch.int64)}
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        return {"action": Bounded(low, high, low.shape, dtype=torch.float32)}


def rebuildable(build: Builder) -> Builder:
    """Marks a function of settings, an environment and plain values whose modules can be rebuilt from a file."""

    @functools.wraps(build)
    def recording(*args: Any, **kwargs: Any) -> Any:
        return record(build(*args, **kwargs), path_of(recording), *args, **kwargs)

    recording.is_rebuildable = True  # type: ignore[attr-defined]
    return cast(Builder, recording)


def record(module: Any, path: str, *args: Any, **kwargs: Any) -> Any:
    """Stores on ``module`` the import path and the arguments that build it, and returns it."""
    named = {key: _storable(value) for key, value in kwargs.items()}
    vars(module).update(built_by=path, built_with=(tuple(map(_storable, args)), named))
    return module


def _storable(value: Any) -> Any:
    """An environment's :class:`Spaces`; any other value unchanged."""
    return Spaces.from_env(value) if isinstance(value, EnvBase) else value


def path_of(named: Any) -> str:
    """The import path ``module:Name`` of a class or function: that of the package if it exports the name."""
    module, name = named.__module__, named.__qualname__
    package = ".".join(module.split(".")[:2])
    return f"{package if getattr(sys.modules.get(package), name, None) is named else module}:{name}"
