"""Signals that ask a run to stop: heard between two batches where a run can be saved there, else as exceptions."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torchrl_reg.training.errors import Interrupted
from torchrl_reg.training.run.polite_stop import STOP

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PATIENCE_SECONDS = 5.0
# Two signals this close are one wish: a wrapper (timeout, a shell) passes on what the whole group was sent.
_TOGETHER_SECONDS = 0.5
_PROMISE = b"\nstopping as soon as the run is saved; a second signal stops at once\n"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Stops on Ctrl-C, SIGTERM and SIGUSR1/2 unless something else (submitit) already handles them.

    A run that can be saved finishes its batch and writes a checkpoint first; a second signal stops it at once. Later
    ones change nothing while it stops; if that takes long, the next ends the process where it stands.
    """
    asked_at: float | None = None
    stopped_at: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at, stopped_at
        error, now = KeyboardInterrupt() if number == signal.SIGINT else Interrupted(number), time.monotonic()
        if stopped_at is not None:
            if now - stopped_at > _PATIENCE_SECONDS:
                os._exit(128 + number)
        elif STOP.waiting and asked_at is None:
            STOP.asked, asked_at = error, now
            with contextlib.suppress(OSError):  # not print(): the signal may have come in the middle of one
                os.write(2, _PROMISE)
        elif asked_at is None or now - asked_at > _TOGETHER_SECONDS:
            stopped_at = now
            raise error

    STOP.asked, STOP.words = None, None
    by_default = (signal.SIG_DFL, signal.default_int_handler)
    ours = {each: signal.getsignal(each) for each in _STOPPING if signal.getsignal(each) in by_default}
    for each in ours:
        signal.signal(each, stop)
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        if STOP.asked is not None and stopped_at is None:  # a run that has been saved
            stopped_at = time.monotonic()
        raise
    finally:
        STOP.asked = None
        for each, before in ours.items() if stopped_at is None else ():  # else the process is about to end
            signal.signal(each, before)
