"""Lock files of ``filelock`` that hold the name of their owner.

The elements of a SLURM array import this, so it needs no torch.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from torchrl_reg.lab.printable import printable

LOCK = ".lock"
# is_locked() holds a lock for an instant: without this, a run that starts just then would be refused.
_TIMEOUT_SECONDS = 0.5
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class LockedError(Exception):
    """Another process holds the lock; the message names it."""


def acquire(path: Path) -> BaseFileLock:
    """Acquires the lock ``path``; it is held until it is released or collected, or until the process ends.

    Raises:
        LockedError: another process holds it.
        OSError: ``path`` cannot be written.
    """
    lock = _take(path, _TIMEOUT_SECONDS)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n", encoding="utf-8")
    return lock


def is_locked(path: Path) -> bool:
    """True if a process holds the lock ``path``; False where this process lacks write permission."""
    if not path.exists():
        return False
    try:
        _take(path, 0).release()
    except LockedError:
        return True
    except OSError:
        pass
    return False


def _take(path: Path, seconds: float) -> BaseFileLock:
    try:
        return _acquired(FileLock(path, seconds, thread_local=False, fallback_to_soft=False))
    except Timeout:
        raise LockedError(_owner(path)) from None
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        error.__traceback__ = None  # its frames hold the lock, in a reference cycle that would keep it held
    soft = path.with_name(f"{path.name}.soft")
    try:
        return _acquired(SoftFileLock(soft, seconds, thread_local=False))
    except Timeout:
        # filelock detects a dead owner only on the same machine, on a file system that can exchange two names.
        raise LockedError(f"{_owner(path)} (if it is gone, delete {soft})") from None


def _acquired(lock: BaseFileLock) -> BaseFileLock:
    lock.acquire()
    return lock


def _owner(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    return printable(text) or "another process"
