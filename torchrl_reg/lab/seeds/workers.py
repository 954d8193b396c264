"""Several tasks in one process: greenlets that synchronize at barriers to batch their computations.

One worker runs at a time; its random generators are swapped in and out with it. :meth:`Worker.barrier` suspends a
worker until every worker waits at some barrier; then one call computes the results of all that wait at the same one.
Greenlets rather than threads, because on a busy machine every switch of threads waits for the scheduler.
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
    """A barrier at which a worker waits, and its argument there."""

    kind: Hashable
    value: Any
    compute: Callable[[list[Any]], Sequence[Any]]
    brief: bool


class Worker(greenlet):
    """A greenlet that runs one of several tasks.

    Attributes:
        number: index among the workers.
        outcome: return value of the task.
        error: exception of the task, if it raised one.
        prepare: called before the training loop, so that resumed runs also batch their first computation.
    """

    def __init__(self, workers: Workers, number: int, task: Callable[[], Any]) -> None:
        super().__init__()
        self.gr_context = contextvars.copy_context()  # a greenlet starts with an empty context otherwise
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
        """Number of workers, finished ones included."""
        return len(self._workers.workers)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """The object shared by all workers under ``name``, created by ``make`` on the first call."""
        shared = self._workers.shared
        if name not in shared:
            shared[name] = make()
        return shared[name]

    def barrier(
        self, kind: Hashable, value: T, compute: Callable[[list[T]], Sequence[Any]], *, brief: bool = False
    ) -> Any:
        """Waits for the other workers; ``compute`` gets the values of those at the same ``kind``, ordered by number.

        Returns this worker's element of the result of ``compute``, or raises its exception. ``brief`` barriers open
        before others at which workers already wait. After one, Python's ``random`` may hold the state of another worker
        until the next barrier that is not brief.
        """
        self.waits_at = _Barrier(kind, value, compute, brief)
        successor = self._workers.next_after(self)
        if successor is not self:
            self._generators.save()
            successor.switch()
            self._generators.restore()
        if not brief:
            self.take_python_generator()
        result, error = self._result
        self._result = None, None
        if error is not None:
            raise error
        return result

    def take_python_generator(self) -> None:
        """Loads this worker's state into Python's ``random``; 10 times as slow as for the other generators."""
        holder, self._workers.python_holder = self._workers.python_holder, self
        if holder is not self:
            if holder is not None:
                holder.python_state = random.getstate()
            random.setstate(self.python_state)

    def leave_barrier(self, result: Any, error: Exception | None) -> None:
        """Makes this worker runnable, with the result or exception of its barrier."""
        self.waits_at, self._result = None, (result, error)

    def run(self) -> Worker:
        """Runs the task; KeyboardInterrupt and exceptions of signal handlers propagate to ``Workers.run``."""
        self._generators.restore()
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
        """Returns all workers when they have finished, each with its ``outcome`` or ``error``.

        A KeyboardInterrupt or another exception that is no ``Exception`` ends all of them.
        """
        caller, python_state = _Generators(), random.getstate()
        caller.save()
        successor: Worker | None = self.workers[0]
        try:
            while successor is not None:
                successor = self.next_after(successor.switch())  # switch returns the worker that has finished
        except BaseException:
            for worker in self.workers:
                if worker:  # started and not finished
                    worker.throw()
            raise
        finally:
            caller.restore()
            random.setstate(python_state)
        return self.workers

    def next_after(self, worker: Worker) -> Any:
        """The worker to run next: ``worker`` if it is runnable, else one after it; None when all have finished."""
        ordered = [*self.workers[worker.number :], *self.workers[: worker.number]]
        running = [other for other in ordered if not other.dead]
        runnable = next((other for other in running if other.waits_at is None), None)
        if runnable is None and running:
            self._open_barrier()
            runnable = next(other for other in self.workers if not other.dead and other.waits_at is None)
        return runnable

    def _open_barrier(self) -> None:
        """Computes for the workers at one barrier, a brief one first, so that all workers reach the other barriers."""
        waiting = [(worker, worker.waits_at) for worker in self.workers if worker.waits_at is not None]
        opened = next((barrier for _, barrier in waiting if barrier.brief), waiting[0][1])
        group = [(worker, barrier.value) for worker, barrier in waiting if barrier.kind == opened.kind]
        failure, results = None, [None] * len(group)
        try:
            results = list(opened.compute([value for _, value in group]))
        except Exception as error:
            failure = error
        for (worker, _), result in zip(group, results, strict=True):
            worker.leave_barrier(result, failure)


def current_worker() -> Worker | None:
    """The worker of the calling code, if any."""
    current = getcurrent()
    return current if isinstance(current, Worker) else None


class _Generators:
    """State of the global torch and NumPy generators of a worker while another one runs."""

    def __init__(self) -> None:
        self.save()
        # NumPy's global generator is replaced as an object: copying its state is 10 times as slow.
        self._numpy: Any = np.random.MT19937(0)

    def save(self) -> None:
        self._torch, self._numpy = torch.get_rng_state(), np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        torch.set_rng_state(self._torch)
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
