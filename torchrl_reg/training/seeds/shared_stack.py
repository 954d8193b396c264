"""The losses of all seeds as one stacked loss, shared by their updates and their collectors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from torchrl_reg.training.seeds.workers import Worker


class SharedStack:
    """Stacks the losses of all workers (``loss.stacked_with``) and keeps the stack as long as they stay the same.

    Attributes:
        stacked: the stack; None before there is one.
        refused: whether the losses cannot be stacked.
    """

    def __init__(self) -> None:
        self.stacked: Any = None
        self.refused = False
        self._losses: list[Any] = []

    @property
    def size(self) -> int:
        """Number of losses in the stack."""
        return len(self._losses)

    def holds(self, losses: Sequence[Any]) -> bool:
        """True if ``losses`` are stacked, which is done now if necessary."""
        same = len(losses) == len(self._losses) and all(a is b for a, b in zip(losses, self._losses, strict=True))
        if same and self.stacked.is_current():
            return True
        try:
            if not hasattr(losses[0], "stacked_with"):
                raise ValueError(f"loss must have a stacked form, got a {type(losses[0]).__name__}.")
            self.stacked, self._losses = losses[0].stacked_with(losses[1:]), list(losses)
        except ValueError as error:
            self.refuse(error)
        return not self.refused

    def refuse(self, reason: Exception) -> None:
        """Leaves each worker to itself from now on, with a message."""
        self.refused, self.stacked = True, None
        print(f"run.seeds: each seed is updated separately: {reason}", file=sys.stderr, flush=True)


def shared_stack(worker: Worker) -> SharedStack:
    """The one stack of all workers."""
    return worker.shared("stack", SharedStack)
