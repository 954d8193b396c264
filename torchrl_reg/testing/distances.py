"""Distances of predictions from their targets, told from the values that a loss has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distance:
    """A function of the error: ``scale`` times the one called ``name``."""

    name: str
    scale: float
    of: Callable[[Tensor], Tensor]

    def __call__(self, error: Tensor) -> Tensor:
        """Losses, of the shape of ``error``."""
        return self.scale * self.of(error)


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """Squares up to ``delta``, and lines beyond it."""
    size = error.abs()
    return torch.where(size < delta, size.square() / 2, delta * (size - delta / 2))


def log_cosh(error: Tensor) -> Tensor:
    """``ln cosh``, which does not overflow."""
    return error.abs() + torch.nn.functional.softplus(-2 * error.abs()) - math.log(2)


def clipped(error: Tensor) -> Tensor:
    """Squares of errors that are clipped to [-1, 1]: a known mistake, which has no gradient beyond them."""
    return error.clamp(-1, 1).square()


def fitted(error: Tensor, loss: Tensor, slope: Tensor, tol: float) -> Distance | None:
    """The distance that gives ``loss [N]`` at ``error [N]``; ``slope [N]`` is the gradient, which tells delta."""
    for name, of in _candidates(error, loss, slope):
        unit = of(error)
        scale = (loss.sum() / unit.sum()).item()
        if 1e-9 < scale < math.inf and ((loss - scale * unit).abs() <= tol * (scale * unit + scale)).all():
            return Distance(name, scale, of)
    return None


def _candidates(error: Tensor, loss: Tensor, slope: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield from (("squared", torch.square), ("huber", huber), ("absolute", torch.abs))
    largest = int(error.abs().argmax())
    delta = 2 * (error.abs() - loss / slope.abs())[largest].item()  # where it is a line, loss / slope = |d| - delta / 2
    if 0 < delta < math.inf:
        yield "huber", partial(huber, delta=delta)
    yield from (("log cosh", log_cosh), ("clipped", clipped))
