"""Stopping the runs of this process on a signal: between two batches, after a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """The pending signal, and the loops that handle it.

    Attributes:
        requested: the exception of the first signal; None until one arrives.
        waiting: loops that stop by themselves; without one a signal stops the process at once.
        notice: gives the message on where the same command resumes; None outside a run.
    """

    def __init__(self) -> None:
        self.requested: BaseException | None = None
        self.waiting: set[object] = set()
        self.notice: Callable[[], str] | None = None

    @contextmanager
    def awaited(self, awaits: bool = True) -> Iterator[None]:
        """Inside the context, the first signal only sets ``requested``, if ``awaits``."""
        loop = object()
        self.waiting |= {loop} if awaits else set()
        try:
            yield
        finally:
            self.waiting.discard(loop)


STOP = Stop()


class StopFrame:
    """The frame at which all seeds of a process stop; they pass the same frames, but not at the same time."""

    def __init__(self) -> None:
        self._passed, self._frames = -1, -1

    def is_reached(self, frames: int) -> bool:
        """True from the first frame that no seed had passed when the signal arrived."""
        if self._frames < 0 and STOP.requested is None:
            self._passed = max(self._passed, frames)
        elif self._frames < 0 and frames > self._passed:
            self._frames = frames
        return 0 <= self._frames <= frames
