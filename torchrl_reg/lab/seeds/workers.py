"""Runs several tasks in one process; greenlets synchronise at barriers to share one batched computation.

One worker runs at a time: a greenlet with a call stack of its own, whose random generators are swapped in for its turn.
A worker that calls :meth:`Worker.barrier` waits until every worker is at a barrier; one call then computes for a group.
With threads, each turn would wait for the scheduler of a busy machine.
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
    """A barrier at which a worker waits, and its input."""

    kind: Hashable
    value: Any
    compute: Callable[[list[Any]], Sequence[Any]]
    reentrant: bool
    last: bool


class Worker(greenlet):
    """One of several tasks.

    Attributes:
        number: its place among the workers, from 0.
        outcome: the return value of its task.
        error: the exception that its task raised instead.
        prepare: called before the loop of a run, so that the first batch of a resumed run is computed together, too.
    """

    def __init__(self, workers: Workers, number: int, task: Callable[[], Any]) -> None:
        super().__init__()
        self.gr_context = contextvars.copy_context()  # a greenlet starts with an empty one
        self.number = number
        self.outcome: Any = None
        self.error: Exception | None = None
        self.prepare: Callable[[], Any] = lambda: None
        self.waits_at: _Barrier | None = None
        self.python_state = random.getstate()
        self._workers, self._task = workers, task
        self._result: tuple[Any, Exception | None] = None, None
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
        """The object that all workers share under ``name``; the first call makes it."""
        shared = self._workers.shared
        if name not in shared:
            shared[name] = make()
        return shared[name]

    def barrier(
        self,
        kind: Hashable,
        value: T,
        compute: Callable[[list[T]], Sequence[Any]],
        *,
        reentrant: bool = False,
        last: bool = False,
    ) -> Any:
        """Waits for the others; ``compute`` gets the values of the workers at the same ``kind``, by worker number.

        Returns this worker's element of the result; an exception of ``compute`` is raised in each of these workers.
        A ``reentrant`` barrier, passed several times between two others, opens first, while some workers already wait
        at another; one that is ``last`` opens when all workers wait there. After a reentrant one, Python's ``random``
        may hold another worker's state until the next other barrier.
        """
        self.waits_at = _Barrier(kind, value, compute, reentrant, last)
        following = self._workers.next_after(self)
        if following is not self:
            self._generators.save()
            following.switch()
            self._generators.load()
        if not reentrant:
            self.take_python_generator()
        result, failure = self._result
        self._result = None, None
        if failure is not None:
            raise failure
        return result

    def take_python_generator(self) -> None:
        """Loads this worker's state into Python's ``random``; ten times slower than for the other generators."""
        holder, self._workers.python_holder = self._workers.python_holder, self
        if holder is not self:
            if holder is not None:
                holder.python_state = random.getstate()
            random.setstate(self.python_state)

    def leave_barrier(self, result: Any, failure: Exception | None) -> None:
        """Makes this worker runnable again."""
        self.waits_at, self._result = None, (result, failure)

    def run(self) -> Worker:
        """Runs the task; KeyboardInterrupt and signals propagate to ``Workers.run``."""
        self._generators.load()
        self.take_python_generator()
        try:
            self.outcome = self._task()
        except Exception as error:
            self.error = error
        return self


class Workers:
    """Runs ``tasks`` concurrently to completion.

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

        Anything but an ``Exception`` in one (Ctrl-C, a signal) ends them all.
        """
        before, python_before = _Generators(), random.getstate()
        before.save()
        following: Worker | None = self.workers[0]
        try:
            while following is not None:
                following = self.next_after(following.switch())  # returns the finished worker
        except BaseException:
            for worker in self.workers:
                if worker:  # started and not finished
                    worker.throw()
            raise
        finally:
            before.load()
            random.setstate(python_before)
        return self.workers

    def next_after(self, worker: Worker) -> Any:
        """The worker with the next turn: ``worker`` if runnable, else the next that is; None once all have finished."""
        ordered = [*self.workers[worker.number :], *self.workers[: worker.number]]
        running = [other for other in ordered if not other.dead]
        runnable = next((other for other in running if other.waits_at is None), None)
        if runnable is None and running:
            self._open_barrier()
            runnable = next(other for other in self.workers if not other.dead and other.waits_at is None)
        return runnable

    def _open_barrier(self) -> None:
        """Computes for the workers at one barrier: a reentrant one if there is any, so that all reach the others."""
        waiting = [(worker, worker.waits_at) for worker in self.workers if worker.waits_at is not None]
        first = min((barrier for _, barrier in waiting), key=lambda barrier: barrier.last - barrier.reentrant)
        group = [(worker, barrier.value) for worker, barrier in waiting if barrier.kind == first.kind]
        failure, results = None, [None] * len(group)
        try:
            results = list(first.compute([value for _, value in group]))
        except Exception as error:
            failure = error
        for (worker, _), result in zip(group, results, strict=True):
            worker.leave_barrier(result, failure)


def current_worker() -> Worker | None:
    """The worker that runs the calling code, if any."""
    current = getcurrent()
    return current if isinstance(current, Worker) else None


class _Generators:
    """The global torch and NumPy generators of one worker, saved while another has its turn."""

    def __init__(self) -> None:
        self.save()
        # NumPy's global generator is swapped as a whole: copying its state takes ten times as long.
        self._numpy: Any = np.random.MT19937(0)

    def save(self) -> None:
        self._torch, self._numpy = torch.get_rng_state(), np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def load(self) -> None:
        torch.set_rng_state(self._torch)
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
