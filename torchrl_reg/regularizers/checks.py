"""Checks of the numbers that constructors take, and the exact tensors that hold them.

A number is a Python or numpy number, or a tensor of one element (which is read here, once); a bool is not a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, SupportsFloat

import torch
from torch import Tensor, nn

Number = SupportsFloat


def check_temperature(tau: Number, name: str = "tau") -> float:
    """Return ``tau`` if it is a finite temperature > 0 (reward units), else raise ValueError."""
    return check_number(tau, name, "the temperature, in reward units", positive=True)


def check_weight(value: Number, name: str = "alpha") -> float:
    """Return ``value`` if it lies in [0, 1], else raise ValueError."""
    return _checked(value, name, lambda x: 0 <= x <= 1, "in [0, 1]")


check_discount = check_weight


def check_rate(value: Number, name: str = "rate") -> float:
    """Return ``value`` if it lies in (0, 1], else raise ValueError."""
    return _checked(value, name, lambda x: 0 < x <= 1, "in (0, 1]")


def check_clip(clip_min: Number | None, name: str = "clip_min") -> float:
    """Return the lower clip of tau * ln pi as a float <= 0 (None, no clip, is -inf), else raise ValueError."""
    must_be = "<= 0 (a lower clip of tau * ln pi, in reward units) or None"
    return -math.inf if clip_min is None else _checked(clip_min, name, lambda x: x <= 0, must_be)


def check_kl_weight(lam: Number, name: str = "lam") -> float:
    """Return ``lam`` if it is a finite weight >= 0 (reward units), else raise ValueError."""
    return _checked(lam, name, lambda x: 0 <= x < math.inf, "a finite number >= 0 (in reward units)")


def check_number(value: Number, name: str, meaning: str, *, positive: bool = False) -> float:
    """Return ``value`` if it is a finite number (> 0 with ``positive``), else raise ValueError."""
    must_be = f"a finite number{' > 0' if positive else ''} ({meaning})"
    return _checked(value, name, lambda x: math.isfinite(x) and (x > 0 or not positive), must_be)


def _checked(value: Any, name: str, holds: Callable[[float], bool], must_be: str) -> float:
    number = as_number(value)
    if number is None or not holds(number):
        raise ValueError(f"{name} must be {must_be}, got {value!r}.")
    return number


def check_integer(value: Any, name: str, low: int, meaning: str = "") -> int:
    """Return ``value`` if it is an integer >= ``low``, else raise ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}{meaning and f' ({meaning})'}, got {value!r}.")
    return value


def check_flag(value: Any, name: str) -> bool:
    """Return ``value`` if it is True or False, else raise ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return value


def as_number(value: Any) -> float | None:
    """``value`` as a float if it is a number, else None."""
    if isinstance(value, Tensor) and value.numel() == 1 or getattr(value, "ndim", None) == 0:
        value = value.item()  # a tensor of one element, a numpy scalar or array of no dimensions
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def exact_scalar(value: float, device: torch.device | str | None = None) -> Tensor:
    """``value`` in float64, which keeps published values exact in double precision; float32 on devices without it.

    A tensor of no dimensions never promotes the data it meets.
    """
    return exact_where_possible(lambda x: x.to(device))(torch.tensor(value, dtype=torch.float64))


def exact_where_possible(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, a move or a cast, tried again in float32 where the device has no float64 (such as Apple's)."""

    def moved(tensor: Tensor) -> Tensor:
        try:
            return fn(tensor)
        except TypeError:
            if tensor.dtype != torch.float64:
                raise
            return fn(tensor.float())

    return moved


def moved_exactly(exact: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """``fn(exact)``, where a cast to a shorter type only moves; in float32 on a device that has no float64."""
    try:
        moved = fn(exact)
    except TypeError:
        return fn(exact.float())
    return moved if moved.dtype == exact.dtype else exact_where_possible(lambda x: x.to(moved.device))(exact)


class ExactBuffers(nn.Module):
    """Base of modules with buffers that follow moves between devices, but no cast to a shorter type."""

    #: Names of these buffers.
    exact_buffers: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = {name: self._buffers.pop(name) for name in self.exact_buffers if name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers.update({k: None if v is None else moved_exactly(v, fn) for k, v in exact.items()})
        return self
