"""Schedules of exploration rates, learning rates and coefficients, stepped after each batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchrl.modules import EGreedyModule

if TYPE_CHECKING:
    from torchrl_reg.lab.run.run import Run


class LinearSchedule:
    """Anneals a number linearly: an exploration rate, a learning rate, a temperature.

    A function of ``run.frames`` without state, so there is nothing to checkpoint. Other schedules need ``step(run)``.

    Args:
        assign: called with the current value, e.g. ``loss.regularizer.coefficient.assign`` or ``egreedy.eps.fill_``.
        start, end: first and last value.
        over_frames: frames from ``start`` to ``end``.
        after_frames: frames with value ``start`` before.

    >>> from types import SimpleNamespace
    >>> values = []
    >>> LinearSchedule(values.append, 1.0, 0.1, over_frames=1_000).step(SimpleNamespace(frames=500))
    >>> values
    [0.55]
    """

    def __init__(
        self, assign: Callable[[float], Any], start: float, end: float, over_frames: int, after_frames: int = 0
    ) -> None:
        self.assign, self.start, self.end = assign, start, end
        self.over_frames, self.after_frames = over_frames, after_frames

    def step(self, run: Run) -> None:
        """Assigns the value at ``run.frames``."""
        progress = (run.frames - self.after_frames) / self.over_frames
        self.assign(self.start + (self.end - self.start) * min(1.0, max(0.0, progress)))


class EpsilonSchedule(LinearSchedule):
    """Anneals the ``eps`` of an exploration module linearly, as set by ``algo``.

    Args:
        module: an epsilon-greedy module.
        algo: the hyperparameters: ``eps_start`` to ``eps_end`` over ``eps_frames``, from ``eps_starts_frames`` on; with
            ``random_until_learning`` it is 1 before ``learning_starts_frames``; with ``eps_decay="exponential"`` it is
            ``eps_end + (eps_start - eps_end) exp(-frames / eps_frames)``; 0 from ``eps_off_frames`` on.
    """

    def __init__(self, module: EGreedyModule, algo: Any) -> None:
        self.module = module
        starts, self.random_frames = algo.eps_starts_frames, 0
        self.algo, self.after = algo, algo.learning_starts_frames if starts is None else starts
        after = self.after
        super().__init__(lambda eps: module.eps.fill_(eps), algo.eps_start, algo.eps_end, algo.eps_frames, after)
        if algo.random_until_learning and algo.learning_starts_frames > 0:
            self.random_frames = algo.learning_starts_frames
            self.assign(1.0)
        elif algo.eps_off_frames == 0:
            self.assign(0.0)

    def step(self, run: Run) -> None:
        """Assigns the epsilon at ``run.frames``."""
        algo = self.algo
        if run.frames < self.random_frames:
            self.assign(1.0)
        elif algo.eps_off_frames is not None and run.frames >= algo.eps_off_frames:
            self.assign(0.0)
        elif algo.eps_decay == "exponential":
            decay = math.exp(-max(0, run.frames - self.after) / algo.eps_frames)
            self.assign(algo.eps_end + (algo.eps_start - algo.eps_end) * decay)
        else:
            super().step(run)


def step_schedule(schedule: Any, run: Run, frames: int) -> None:
    """Steps ``schedule`` by one batch of ``frames`` frames.

    torch's learning-rate schedulers are stepped once per batch, from the first update on; TorchRL's exploration modules
    with the number of frames; others with the run.
    """
    if isinstance(schedule, LRScheduler):
        if run.updates:  # torch warns if the scheduler is stepped before the optimizer
            schedule.step()
    elif isinstance(schedule, nn.Module):
        schedule.step(frames)  # type: ignore[operator]
    else:
        schedule.step(run)
