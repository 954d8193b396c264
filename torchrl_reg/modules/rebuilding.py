"""Networks that remember how they were built, so that a saved one can be built again where its environment is not.

A builder marked :func:`rebuildable` notes its name, settings and the environment's spaces on what it returns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

Builder = TypeVar("Builder", bound=Callable[..., Any])

#: Name of a builder -> the builder and the class of its settings.
BUILDERS: dict[str, tuple[Callable[..., Any], type]] = {}


@dataclass(frozen=True)
class Spaces:
    """What a network has to know of an environment, and a stand-in for one where networks are built.

    Args:
        observations: key -> shape of one observation and its dtype, ``"float32"``.
        num_actions: A of a discrete action; None of a continuous one.
        low, high: bounds ``[D]`` of a continuous action, one environment's.
    """

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
    def of(cls, env: EnvBase | Spaces) -> Spaces:
        """The spaces of ``env``, whatever its batch size."""
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


def rebuildable(settings_class: type) -> Callable[[Builder], Builder]:
    """Marks a builder ``(settings, env, *arguments) -> module``, whose modules :func:`rebuilt` can then build again.

    ``arguments`` are numbers, strings or lists of them; module-level functions only, each under a name of its own.
    """

    def mark(build: Builder) -> Builder:
        @functools.wraps(build)
        def remembering(settings: Any, env: EnvBase | Spaces, *arguments: Any, **options: Any) -> Any:
            module = build(settings, env, *arguments, **options)
            module.built_by = {
                "builder": build.__name__,
                "settings": dataclasses.asdict(settings),
                "arguments": list(arguments),
                "options": options,
                "spaces": dataclasses.asdict(Spaces.of(env)),
            }
            return module

        BUILDERS[build.__name__] = (remembering, settings_class)
        return cast(Builder, remembering)

    return mark


def rebuilt(built_by: dict[str, Any]) -> Any:
    """A module like the one that carried this ``built_by``, with weights of its own.

    Raises:
        ValueError: a builder, a setting or a space that this version does not know.
    """
    name = built_by.get("builder")
    if name not in BUILDERS:
        raise ValueError(f"builder must be one of {', '.join(sorted(BUILDERS))}, got {name!r}.")
    build, settings_class = BUILDERS[name]
    known = {field.name for field in dataclasses.fields(settings_class)}
    unknown = sorted(set(built_by["settings"]) - known)
    if unknown:
        raise ValueError(f"The settings of {name} must be among {', '.join(sorted(known))}, got {', '.join(unknown)}.")
    return build(
        settings_class(**built_by["settings"]),
        Spaces(**built_by["spaces"]),
        *built_by["arguments"],
        **built_by["options"],
    )
