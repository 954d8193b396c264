"""A signal asks the runs of this process to stop; they do between two batches, once they have written a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """What a signal has asked for, and what the runs of this process make of it.

    Attributes:
        asked: the exception for the signal that came first; None so far.
        waiting: loops that will stop by themselves; without one a signal stops the process where it stands.
        words: says from where the same command would go on; None before a run begins and once it has ended.
    """

    def __init__(self) -> None:
        self.asked: BaseException | None = None
        self.waiting: set[object] = set()
        self.words: Callable[[], str] | None = None

    @contextmanager
    def awaited(self, awaits: bool = True) -> Iterator[None]:
        """Inside, the first signal only sets ``asked``, if the caller ``awaits`` it."""
        loop = object()
        self.waiting |= {loop} if awaits else set()
        try:
            yield
        finally:
            self.waiting.discard(loop)


STOP = Stop()


class StopFrame:
    """The frame at which the seeds of a process stop: all pass the same frames, but not at the same instant."""

    def __init__(self) -> None:
        self._passed, self._frames = -1, -1

    def is_reached(self, frames: int) -> bool:
        """True from the first frame on that no seed had passed when the signal came."""
        if self._frames < 0 and STOP.asked is None:
            self._passed = max(self._passed, frames)
        elif self._frames < 0 and frames > self._passed:
            self._frames = frames
        return 0 <= self._frames <= frames
