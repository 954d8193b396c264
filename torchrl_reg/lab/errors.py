"""Errors that end a run with one sentence instead of a traceback, and the check that raises them."""

from __future__ import annotations

import dis
import errno
from typing import Any


class UserError(ValueError):
    """What the user can mend: a setting, a damaged file, a run that diverged; the message is one sentence."""


class Interrupted(BaseException):
    """A signal asked the run to stop; derived from BaseException so that no ``except`` swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def stop_behind(error: BaseException) -> KeyboardInterrupt | Interrupted | None:
    """The signal's exception that ``error`` is, or that was raised before ``error`` replaced it; None if there is none.

    Leaving ``with params.to_module(net):`` by anything but an ``Exception``, TensorDict returns itself from
    ``__exit__``, and Python, asking for its truth, raises "Converting a tensordict to boolean value is not permitted".
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt | Interrupted):
        found = found.__context__
    return found


def require(condition: bool, setting: str, expected: str, got: Any) -> None:
    """Raises ``UserError`` "<setting> must be <expected>, got <got>." unless ``condition`` holds.

    >>> require(0.03 > 0, "algo.tau", "positive (temperature, reward units)", 0.03)
    >>> require(-1 > 0, "algo.tau", "positive (temperature, reward units)", -1)
    Traceback (most recent call last):
    torchrl_reg.lab.errors.UserError: algo.tau must be positive (temperature, reward units), \
got -1.
    """
    if not condition:
        raise UserError(f"{setting} must be {expected}, got {got!r}.")


def user_sentence(error: BaseException) -> str | None:
    """The sentence shown to the user for an ``error`` that they can fix; None for a bug, which keeps its traceback.

    These are: a :class:`UserError`; a ``ValueError`` that a ``raise`` of this package outside ``lab`` raises (its rule
    for bad arguments), and not one that Python or torch raises inside it; a full disk; and settings that do not fit the
    memory.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return str(error) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
        said = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        return f"Out of memory ({said}): lower replay_capacity, batch_size, num_envs or the size of the network."
    return str(error) if isinstance(error, ValueError) and _raised_below(error) else None


def _raised_below(error: BaseException) -> bool:
    """True if a ``raise`` statement of this package, outside ``lab``, is where ``error`` comes from."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "")
    code = traceback.tb_frame.f_code.co_code
    raised = dis.opname[code[traceback.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
    return raised and module.startswith("torchrl_reg.") and not module.startswith("torchrl_reg.lab.")


# How torch and the C library say it; CUDA has a class of its own, whose message says it, too.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "size calculation overflowed")
