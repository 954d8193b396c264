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
    """Decides where the seeds of a process stop: those side by side at one frame, a lagging one at its own next.

    Seeds that run together pass the same frames, but not at the same time.
    """

    def __init__(self) -> None:
        #: The last frame that each seed has gone on from.
        self._passed: dict[object, int] = {}

    def stop_or_pass(self, frames: int, frames_per_batch: int, seed: object = None, *, can_stop: bool = True) -> bool:
        """True if ``seed`` stops at ``frames``; if not, records that it has gone on from there.

        It stops at the first frame after the signal that no other seed less than one batch ahead has already passed.
        """
        if STOP.requested is not None and can_stop:
            others = (passed for other, passed in self._passed.items() if other is not seed)
            if not any(frames <= passed <= frames + frames_per_batch for passed in others):
                return True
        self._passed[seed] = frames
        return False
