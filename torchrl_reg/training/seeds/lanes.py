"""Several runs in one process, taking turns, that meet where one computation can do the work of all.

Only one lane runs at a time, so a run need not know about the others: each is a greenlet, with a call stack of its own
and random generators that are swapped with the turn. A lane that calls :meth:`Lane.meet` waits until all lanes have
arrived, and their shared work is done in one go. Threads would do, but on a busy machine each turn would then wait for
the scheduler.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")
Jointly = Callable[[list[Any]], Sequence[Any]]


class _Meeting(NamedTuple):
    kind: Hashable
    given: Any
    jointly: Jointly
    brief: bool


class Lane:
    """One of the runs, having its turn or waiting for it."""

    def __init__(self, lanes: Lanes, number: int, task: Callable[[], Any]) -> None:
        self.number = number
        self.outcome: Any = None
        self.error: Exception | None = None
        self.is_over = False
        self._lanes, self._task = lanes, task
        self.meeting: _Meeting | None = None
        #: Called before the loop, so that a resumed run computes its first batch together, too, like any other.
        self.prepare: Callable[[], Any] = lambda: None
        self._answer: Any = None
        self._failure: Exception | None = None
        self._generators, self.python_state = _Generators(), random.getstate()
        self._stack = _Stack(self)

    @property
    def companions(self) -> int:
        """Number of lanes still running, this one included."""
        return self._lanes.running

    @property
    def is_alone(self) -> bool:
        """Whether all others have finished."""
        return self._lanes.running == 1

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """The object all lanes share under ``name``, made by the first that asks for it."""
        common = self._lanes.common
        if name not in common:
            common[name] = make()
        return common[name]

    @property
    def is_first(self) -> bool:
        """Whether this lane speaks for all, e.g. shows the progress."""
        return self.number == 0

    def meet(
        self, kind: Hashable, given: T, jointly: Callable[[list[T]], Sequence[Any]], *, brief: bool = False
    ) -> Any:
        """Waits for the others; ``jointly`` gets what the lanes that came for the same ``kind`` gave, in lane order.

        Returns this lane's part of what ``jointly`` returned; an error there is raised in each of these lanes.
        ``brief`` meetings take precedence over others that some lanes already wait for. After one, Python's ``random``
        may hold another lane's state until the next meeting that is not brief.
        """
        self.meeting = _Meeting(kind, given, jointly, brief)
        following = self._lanes.next_of(self)
        if following is not self:
            self._generators.keep()
            following.take_turn()
            self._generators.use()
        if not brief:
            self.take_python_generator()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        answer, self._answer = self._answer, None
        return answer

    def take_python_generator(self) -> None:
        """Puts this lane's state into Python's ``random``, ten times slower than for the other generators."""
        holder = self._lanes.python_holder
        if holder is not self:
            if holder is not None:
                holder.python_state = random.getstate()
            random.setstate(self.python_state)
            self._lanes.python_holder = self

    def take_turn(self) -> Any:
        """Runs this lane; returns once the caller has the turn again, to ``Lanes.run`` with a lane that has ended."""
        return self._stack.switch()

    def end(self) -> None:
        """Runs what is left to clean up in an unfinished lane."""
        if self._stack and not self._stack.dead:
            self._stack.throw()

    @property
    def can_go_on(self) -> bool:
        return not self.is_over and self.meeting is None

    def answer(self, part: Any, failure: Exception | None = None) -> None:
        """Ends this lane's wait."""
        self.meeting, self._answer, self._failure = None, part, failure

    def live(self) -> Lane:
        """The task from beginning to end. What is no error but stops it (Ctrl-C) goes up to ``Lanes.run``."""
        self._generators.use()
        try:
            self.take_python_generator()
            self.outcome = self._task()
        except GreenletExit:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.is_over = True
            self._lanes.running -= 1
        return self


class _Stack(greenlet):
    """Where a lane runs; ends in the greenlet that made it."""

    def __init__(self, lane: Lane) -> None:
        super().__init__(lane.live)
        self.lane = lane
        self.gr_context = contextvars.copy_context()  # otherwise it would begin with an empty one


class Lanes:
    """Runs ``tasks`` side by side to completion.

    >>> def task(number: int) -> int:
    ...     return current_lane().meet("sum", number, lambda numbers: [sum(numbers)] * len(numbers)) + number
    >>> [lane.outcome for lane in Lanes([lambda: task(1), lambda: task(10)]).run()]
    [12, 21]
    """

    def __init__(self, tasks: Sequence[Callable[[], Any]]) -> None:
        self.running = len(tasks)
        self.common: dict[str, Any] = {}
        self.python_holder: Lane | None = None
        self.lanes = [Lane(self, number, task) for number, task in enumerate(tasks)]

    def run(self) -> list[Lane]:
        """Returns all lanes once they have finished, each with its ``outcome`` or ``error``.

        Whatever stops one without being an error (Ctrl-C, a signal turned into an exception) ends them all.
        """
        before, python_before = _Generators(), random.getstate()
        before.keep()
        following: Lane | None = self.lanes[0]
        try:
            while following is not None:
                following = self.next_of(following.take_turn())
        except BaseException:
            for lane in self.lanes:
                lane.end()
            raise
        finally:
            before.use()
            random.setstate(python_before)
        return self.lanes

    def next_of(self, lane: Lane) -> Any:
        """The lane with the next turn: ``lane`` if it can go on, else one after it; None once all have finished."""
        ordered = [*self.lanes[lane.number :], *self.lanes[: lane.number]]
        for other in ordered:
            if other.can_go_on:
                return other
        waiting = [other for other in self.lanes if not other.is_over]
        if not waiting:
            return None
        self._hold_meeting(waiting)
        return next(other for other in self.lanes if other.can_go_on)

    def _hold_meeting(self, waiting: list[Lane]) -> None:
        """Answers a group waiting for the same meeting, brief ones first, so that all arrive at the others."""
        brief = [lane for lane in waiting if lane.meeting and lane.meeting.brief]
        kinds = [lane.meeting.kind for lane in brief or waiting if lane.meeting]
        kind = min(kinds, key=kinds.count)
        group = [lane for lane in waiting if lane.meeting and lane.meeting.kind == kind]
        first = group[0].meeting
        assert first is not None
        try:
            parts = first.jointly([lane.meeting.given for lane in group if lane.meeting])
        except Exception as error:
            for lane in group:
                lane.answer(None, error)
            return
        for lane, part in zip(group, parts, strict=True):
            lane.answer(part)


def current_lane() -> Lane | None:
    """The lane in which the calling code runs, if any."""
    return getattr(getcurrent(), "lane", None)


class _Generators:
    """One lane's global torch and NumPy generators, set aside while another has its turn."""

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
