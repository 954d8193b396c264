"""Several runs in one process, taking turns, that meet where one computation does the work of all.

Only one lane runs at a time, so that nothing in a run has to know of the others: each has a thread, and random
generators that are exchanged with the turn. Where a lane calls :meth:`Lane.meet` it waits until all lanes have come,
and what they have in common is computed at once.
"""

from __future__ import annotations

import contextvars
import random
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Jointly = Callable[[list[Any]], Sequence[Any]]
_here = threading.local()


class _Left(BaseException):
    """Ends a lane whose process is to stop."""


class _Meeting(NamedTuple):
    kind: Hashable
    given: Any
    jointly: Jointly
    brief: bool


class Lane:
    """One of the runs, while it has its turn or waits for it."""

    def __init__(self, lanes: Lanes, number: int, task: Callable[[], Any]) -> None:
        self.number = number
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.is_over = False
        self._lanes, self._task = lanes, task
        self._turn = threading.Semaphore(0)
        self.meeting: _Meeting | None = None
        self._answer: Any = None
        self._failure: BaseException | None = None
        self._generators, self.python_state = _Generators(), random.getstate()
        # A thread starts without the context variables of the one that started it.
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self._live,), name=f"lane {number}", daemon=True)

    @property
    def companions(self) -> int:
        """How many lanes are not over, this one among them."""
        return self._lanes.running

    @property
    def is_alone(self) -> bool:
        """Whether all others are over."""
        return self._lanes.running == 1

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """What all lanes have in common under ``name``, made by the first that asks."""
        common = self._lanes.common
        if name not in common:
            common[name] = make()
        return common[name]

    @property
    def is_first(self) -> bool:
        """Whether this lane speaks for all: shows the progress, say."""
        return self.number == 0

    def meet(
        self, kind: Hashable, given: T, jointly: Callable[[list[T]], Sequence[Any]], *, brief: bool = False
    ) -> Any:
        """Waits for the others; of all that come for the same ``kind``, ``jointly`` gets what they gave, in order.

        Returns this lane's part of what ``jointly`` returned; an error there is raised in each of them. ``brief``
        meetings come before others for which some wait already. After one, Python's ``random`` may be that of another
        lane, until a meeting that is not brief.
        """
        self.meeting = _Meeting(kind, given, jointly, brief)
        following = self._lanes.next_of(self)
        if following is not self:
            self._generators.keep()
            following.give_turn()
            self._await_turn()
        if not brief:
            self.take_python_generator()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        answer, self._answer = self._answer, None
        return answer

    def take_python_generator(self) -> None:
        """Puts this lane's state into Python's ``random``, ten times as slow as the other generators."""
        holder = self._lanes.python_holder
        if holder is not self:
            if holder is not None:
                holder.python_state = random.getstate()
            random.setstate(self.python_state)
            self._lanes.python_holder = self

    def give_turn(self) -> None:
        """Lets this lane go on; the caller does not until it gets the turn back."""
        self._turn.release()

    @property
    def can_go_on(self) -> bool:
        return not self.is_over and self.meeting is None

    def answer(self, part: Any, failure: BaseException | None = None) -> None:
        """Ends its wait."""
        self.meeting, self._answer, self._failure = None, part, failure

    def _await_turn(self) -> None:
        self._turn.acquire()
        if self._lanes.stopping:
            raise _Left
        self._generators.use()

    def _live(self) -> None:
        _here.lane = self
        try:
            self._await_turn()
            self.take_python_generator()
            self.outcome = self._task()
        except _Left:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.is_over = True
            self._lanes.running -= 1
            following = self._lanes.next_of(self)
            if following is not None:
                following.give_turn()
            else:
                self._lanes.all_over.set()


class Lanes:
    """Runs ``tasks`` side by side to their ends.

    >>> def task(number: int) -> int:
    ...     return current_lane().meet("sum", number, lambda numbers: [sum(numbers)] * len(numbers)) + number
    >>> [lane.outcome for lane in Lanes([lambda: task(1), lambda: task(10)]).run()]
    [12, 21]
    """

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self.stopping = False
        self.running = len(tasks)
        self.common: dict[str, Any] = {}
        self.python_holder: Lane | None = None
        self.all_over = threading.Event()
        self.lanes = [Lane(self, number, task) for number, task in enumerate(tasks)]

    def run(self) -> list[Lane]:
        """All lanes once they are over, each with its ``outcome`` or ``error``.

        What ends the caller (Ctrl-C, a signal turned into an exception) ends every lane where it next meets others.
        """
        before, python_before = _Generators(), random.getstate()
        before.keep()
        for lane in self.lanes:
            lane.thread.start()
        self.lanes[0].give_turn()
        try:
            while not self.all_over.wait(0.2):  # a signal may have woken another thread
                pass
        except BaseException:
            self.stopping = True
            self.all_over.wait()
            raise
        finally:
            before.use()
            random.setstate(python_before)
        return self.lanes

    def next_of(self, lane: Lane) -> Any:
        """Who has the turn next: ``lane`` itself if it can go on, else those after it; None once all are over."""
        ordered = [*self.lanes[lane.number :], *self.lanes[: lane.number]]
        for other in ordered:
            if other.can_go_on or (self.stopping and not other.is_over and other is not lane):
                return other
        waiting = [other for other in self.lanes if not other.is_over]
        if not waiting:
            return None
        if self.stopping:  # lane itself is the last one left
            raise _Left
        self._hold_meeting(waiting)
        # Always the first one, so that the same thread computes for all each time, in memory that it has used before.
        return next(other for other in self.lanes if other.can_go_on)

    def _hold_meeting(self, waiting: list[Lane]) -> None:
        """Answers a group that waits for the same, brief meetings first, so that all come to those that are not."""
        brief = [lane for lane in waiting if lane.meeting and lane.meeting.brief]
        kinds = [lane.meeting.kind for lane in brief or waiting if lane.meeting]
        kind = min(kinds, key=kinds.count)
        group = [lane for lane in waiting if lane.meeting and lane.meeting.kind == kind]
        first = group[0].meeting
        assert first is not None
        try:
            parts = first.jointly([lane.meeting.given for lane in group if lane.meeting])
        except BaseException as error:
            for lane in group:
                lane.answer(None, error)
            return
        for lane, part in zip(group, parts, strict=True):
            lane.answer(part)


def current_lane() -> Lane | None:
    """The lane that the calling code runs in, if it runs in one."""
    return getattr(_here, "lane", None)


class _Generators:
    """The global generators of torch and NumPy of one lane, put aside while another has its turn."""

    def __init__(self) -> None:
        self.keep()
        # NumPy's global generator is exchanged whole: copying its state takes ten times as long.
        self._numpy: Any = np.random.MT19937(0)

    def keep(self) -> None:
        self._torch, self._numpy = torch.get_rng_state(), np.random.get_bit_generator()  # type: ignore[attr-defined]
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def use(self) -> None:
        torch.set_rng_state(self._torch)
        np.random.set_bit_generator(self._numpy)  # type: ignore[attr-defined]
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
