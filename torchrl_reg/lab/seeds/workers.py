"""Runs several tasks in one process; greenlets synchronise at barriers to share one batched computation.

One worker runs at a time: a greenlet with a call stack of its own, whose random generators come and go with its turn.
A worker that calls :meth:`Worker.barrier` waits until all have arrived somewhere, and one call computes for the group.
Threads would do, but on a busy machine each turn would then wait for the scheduler.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from greenlet import getcurrent, greenlet

T = TypeVar("T")


class _Barrier(NamedTuple):
    """A place where a worker waits, and what it brought."""

    kind: Hashable
    given: Any
    compute: Callable[[list[Any]], Sequence[Any]]
    brief: bool


class Worker(greenlet):
    """One of several tasks.

    Attributes:
        number: its place among the workers, from 0.
        outcome: what its task returned.
        error: what its task raised instead.
        prepare: called before the loop of a run, so that a resumed run, too, computes its first batch together.
    """

    def __init__(self, workers: Workers, number: int, task: Callable[[], Any]) -> None:
        super().__init__()
        self.gr_context = contextvars.copy_context()  # otherwise it would begin with an empty one
        self.number = number
        self.outcome: Any = None
        self.error: Exception | None = None
        self.prepare: Callable[[], Any] = lambda: None
        self.waits_at: _Barrier | None = None
        self.python_state = random.getstate()
        self._workers, self._task = workers, task
        self._answer: tuple[Any, Exception | None] = None, None
        self._generators = _Generators()

    @property
    def companions(self) -> int:
        """Number of workers still running, this one included."""
        return sum(not worker.dead for worker in self._workers.workers)

    @property
    def count(self) -> int:
        """Number of workers, those that have ended among them."""
        return len(self._workers.workers)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """The object all workers share under ``name``, made by the first that asks for it."""
        shared = self._workers.shared
        if name not in shared:
            shared[name] = make()
        return shared[name]

    def barrier(
        self, kind: Hashable, given: T, compute: Callable[[list[T]], Sequence[Any]], *, brief: bool = False
    ) -> Any:
        """Waits for the others; ``compute`` gets what the workers at the same ``kind`` gave, in order of their numbers.

        Returns this worker's part of what ``compute`` returned; an error there is raised in each of these workers.
        ``brief`` barriers open before others at which some workers already wait. After one, Python's ``random`` may
        hold another worker's state until the next barrier that is not brief.
        """
        self.waits_at = _Barrier(kind, given, compute, brief)
        following = self._workers.next_after(self)
        if following is not self:
            self._generators.keep()
            following.switch()
            self._generators.use()
        if not brief:
            self.take_python_generator()
        answer, failure = self._answer
        self._answer = None, None
        if failure is not None:
            raise failure
        return answer

    def take_python_generator(self) -> None:
        """Puts this worker's state into Python's ``random``, ten times slower than for the other generators."""
        holder, self._workers.python_holder = self._workers.python_holder, self
        if holder is not self:
            if holder is not None:
                holder.python_state = random.getstate()
            random.setstate(self.python_state)

    def leave_barrier(self, answer: Any, failure: Exception | None) -> None:
        """Makes this worker ready to go on."""
        self.waits_at, self._answer = None, (answer, failure)

    def run(self) -> Worker:
        """The task from beginning to end; KeyboardInterrupt and signals propagate to ``Workers.run``."""
        self._generators.use()
        self.take_python_generator()
        try:
            self.outcome = self._task()
        except Exception as error:
            self.error = error
        return self


class Workers:
    """Runs ``tasks`` side by side to completion.

    >>> def task(number: int) -> int:
    ...     return current_worker().barrier("sum", number, lambda numbers: [sum(numbers)] * len(numbers)) + number
    >>> [worker.outcome for worker in Workers([lambda: task(1), lambda: task(10)]).run()]
    [12, 21]
    """

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self.shared: dict[str, Any] = {}
        self.python_holder: Worker | None = None
        self.workers = [Worker(self, number, task) for number, task in enumerate(tasks)]

    def run(self) -> list[Worker]:
        """Returns all workers once they have finished, each with its ``outcome`` or ``error``.

        Whatever stops one without being an error (Ctrl-C, a signal turned into an exception) ends them all.
        """
        before, python_before = _Generators(), random.getstate()
        before.keep()
        following: Worker | None = self.workers[0]
        try:
            while following is not None:
                following = self.next_after(following.switch())  # which returns the worker that has ended
        except BaseException:
            for worker in self.workers:
                if worker:  # has begun and not ended
                    worker.throw()
            raise
        finally:
            before.use()
            random.setstate(python_before)
        return self.workers

    def next_after(self, worker: Worker) -> Any:
        """The worker with the next turn: ``worker`` if it can go on, else one after it; None once all have finished."""
        ordered = [*self.workers[worker.number :], *self.workers[: worker.number]]
        running = [other for other in ordered if not other.dead]
        able = next((other for other in running if other.waits_at is None), None)
        if able is None and running:
            self._open_barrier()
            able = next(other for other in self.workers if not other.dead and other.waits_at is None)
        return able

    def _open_barrier(self) -> None:
        """Computes for a group that waits at one barrier, a brief one if there is any, so that all reach the others."""
        waiting = [(worker, worker.waits_at) for worker in self.workers if worker.waits_at is not None]
        first = next((place for _, place in waiting if place.brief), waiting[0][1])
        group = [(worker, place.given) for worker, place in waiting if place.kind == first.kind]
        failure, parts = None, [None] * len(group)
        try:
            parts = list(first.compute([given for _, given in group]))
        except Exception as error:
            failure = error
        for (worker, _), part in zip(group, parts, strict=True):
            worker.leave_barrier(part, failure)


def current_worker() -> Worker | None:
    """The worker that runs the calling code, if any."""
    current = getcurrent()
    return current if isinstance(current, Worker) else None


class _Generators:
    """The global torch and NumPy generators of one worker, set aside while another has its turn."""

    def __init__(self) -> None:
        self.keep()
        # NumPy's global generator is swapped as a whole: copying its state takes ten times as long.
        self._numpy: Any = np.random.MT19937(0)

    def keep(self) -> None:
        self._torch, self._numpy = torch.get_rng_state(), np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def use(self) -> None:
        torch.set_rng_state(self._torch)
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
