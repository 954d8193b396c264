"""Signals that ask a run to stop, as exceptions."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torchrl_reg.training.errors import Interrupted

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PATIENCE_SECONDS = 5.0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Stops on Ctrl-C, SIGTERM and SIGUSR1/2 unless something else (submitit) already handles them.

    Later ones change nothing while the run stops; if that takes long, the next ends the process where it stands.
    """
    stopped_at: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_at
        if stopped_at is None:
            stopped_at = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)
        if time.monotonic() - stopped_at > _PATIENCE_SECONDS:
            os._exit(128 + number)

    by_default = (signal.SIG_DFL, signal.default_int_handler)
    ours = {each: signal.getsignal(each) for each in _STOPPING if signal.getsignal(each) in by_default}
    for each in ours:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, before in ours.items() if stopped_at is None else ():  # else the process is about to end
            signal.signal(each, before)
