"""Errors that end a run with one sentence instead of a traceback, and the check that raises them."""

from __future__ import annotations

import dis
import errno


class UserError(ValueError):
    """An error that the user can fix: a setting, a damaged file, a diverged run. Its message is one sentence."""


class Interrupted(BaseException):
    """Raised on a signal that stops the run; a BaseException, so that no ``except Exception`` swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def stop_behind(error: BaseException) -> KeyboardInterrupt | Interrupted | None:
    """The exception of a signal in the context chain of ``error``, itself included; None if there is none.

    A signal inside ``with params.to_module(net):`` is replaced: TensorDict returns itself from ``__exit__``, and Python
    raises "Converting a tensordict to boolean value is not permitted".
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt | Interrupted):
        found = found.__context__
    return found


def require(condition: bool, setting: str, expected: str, got: object) -> None:
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
    """The message for an ``error`` that the user can fix; None for a bug, which keeps its traceback.

    The user can fix a :class:`UserError`; a ``ValueError`` raised by a ``raise`` statement of this package outside
    ``lab``, where it stands for bad arguments (not one raised by Python or torch); a full disk; and a lack of memory.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return str(error) if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
        reason = first_line(error)[:160]
        return f"Out of memory ({reason}): lower replay_capacity, batch_size, num_envs or the size of the network."
    return str(error) if isinstance(error, ValueError) and _raised_below(error) else None


def first_line(error: BaseException) -> str:
    """The first line of the message of ``error``; the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _raised_below(error: BaseException) -> bool:
    """True if ``error`` was raised by a ``raise`` statement of this package outside ``lab``."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "")
    code = traceback.tb_frame.f_code.co_code
    raised = dis.opname[code[traceback.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")
    return raised and module.startswith("torchrl_reg.") and not module.startswith("torchrl_reg.lab.")


# From messages of torch and the C library; torch.OutOfMemoryError of CUDA matches, too.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "size calculation overflowed")
