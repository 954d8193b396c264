"""One process at a time: lock files of ``filelock``, whose text names their owner.

Imported by the elements of a SLURM array, and so without torch.
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
# is_locked() takes a lock for an instant: a run that starts just then is not refused.
_PATIENCE_SECONDS = 0.5
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class LockedError(Exception):
    """Another process holds the lock; the message names it."""


def acquire(path: Path) -> BaseFileLock:
    """The lock ``path``, held until it is released or forgotten, or its process ends, however that happens.

    Raises:
        LockedError: another process holds it.
        OSError: ``path`` cannot be written.
    """
    lock = _take(path, _PATIENCE_SECONDS)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}\n", encoding="utf-8")
    return lock


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock ``path``; False where this one may only read."""
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
        error.__traceback__ = None  # filelock's frames refer to it: a circle that would outlive the lock and hold it
    soft = path.with_name(f"{path.name}.soft")
    try:
        return _acquired(SoftFileLock(soft, seconds, thread_local=False))
    except Timeout:
        # filelock finds out by itself only for a process of this machine, where the file system can swap two names.
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
