"""Schedules: objects that a loop steps after each batch, and that set a number as frames go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LRScheduler


class LinearSchedule:
    """Anneals any number linearly: a rate of exploration, a learning rate, a temperature.

    It keeps no state, so a resumed run needs none. Anything else with ``step(run)`` will do in its place.

    Args:
        assign: takes the number that is due, e.g. ``loss.regularizer.coefficient.assign`` or ``egreedy.eps.fill_``.
        start, end: the numbers before and after.
        over_frames: frames from one to the other.
        after_frames: frames before that.

    >>> from types import SimpleNamespace
    >>> run = SimpleNamespace(annealed=lambda start, end, over, after: start + (end - start) * 0.5)  # half is over
    >>> seen = []
    >>> LinearSchedule(seen.append, 1.0, 0.1, over_frames=1_000).step(run)
    >>> seen
    [0.55]
    """

    def __init__(
        self, assign: Callable[[float], Any], start: float, end: float, over_frames: int, after_frames: int = 0
    ) -> None:
        self.assign, self.start, self.end = assign, start, end
        self.over_frames, self.after_frames = over_frames, after_frames

    def step(self, run: Any) -> None:
        """Assigns what is due at ``run.frames``."""
        self.assign(run.annealed(self.start, self.end, self.over_frames, self.after_frames))


def step_schedule(schedule: Any, run: Any, frames: int) -> None:
    """Steps ``schedule`` by one batch of ``frames`` frames.

    torch's learning-rate schedulers count batches from the first update on, TorchRL's exploration modules count frames;
    others, like ours, are given the run.
    """
    given = [frames] if isinstance(schedule, nn.Module) else [] if isinstance(schedule, LRScheduler) else [run]
    if given or run.updates:  # before the first update torch's would warn
        schedule.step(*given)
