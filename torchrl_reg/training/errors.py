"""Errors that end a run with one sentence instead of a traceback, and the check that raises them."""

from __future__ import annotations

import errno
from typing import Any


class ConfigError(ValueError):
    """A setting, or a combination of settings, that cannot be run; the message is one sentence."""

    user_error = True


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says what to do about it."""

    user_error = True


class RecordError(RuntimeError):
    """``metrics.jsonl`` cannot be written; the message says what to do about it."""

    user_error = True


class DivergedError(RuntimeError):
    """The loss, a gradient or a parameter is not finite; the message says where, and where it last was."""

    user_error = True


class Interrupted(BaseException):
    """A signal asked the run to stop; derived from BaseException so that no ``except`` eats it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def require(condition: bool, setting: str, expected: str, got: Any) -> None:
    """Raises ``ConfigError`` "<setting> must be <expected>, got <got>." unless ``condition`` holds.

    >>> require(0.03 > 0, "algo.tau", "positive (temperature, reward units)", 0.03)
    >>> require(-1 > 0, "algo.tau", "positive (temperature, reward units)", -1)
    Traceback (most recent call last):
    torchrl_reg.training.errors.ConfigError: algo.tau must be positive (temperature, reward units), \
got -1.
    """
    if not condition:
        raise ConfigError(f"{setting} must be {expected}, got {got!r}.")


def is_user_error(error: BaseException) -> bool:
    """Whether ``error`` is the user's to fix: one sentence is enough, a traceback would bury it.

    True for exceptions whose class says ``user_error = True``, for a ``ValueError`` raised by this
    package itself (the house rule for bad input), and for a full disk.
    """
    if getattr(error, "user_error", False):
        return True
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return isinstance(error, ValueError) and _raising_module(error).startswith("torchrl_reg.")


def _raising_module(error: BaseException) -> str:
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "")
