"""Who writes a run folder, from its files alone: the lock, or else an owner file with a heartbeat.

Imported by the elements of a SLURM array, and so without torch; the run's side is
:mod:`torchrl_reg.lab.run.ownership`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError as error:
    error.msg = "Runs and sweeps need POSIX file locks and signals, which Windows lacks: use WSL. Losses, modules, "
    error.msg += "environments, planning and load_policy work without."
    error.user_error = True  # type: ignore[attr-defined]
    raise

LOCK, OWNER = ".lock", ".owner.json"
#: An owner on another machine that gave no heartbeat for this long is gone.
STALE_SECONDS = 180.0
_STARTED = time.time()


def is_locked(path: Path) -> bool:
    """True if some process holds the lock file ``path``, or, on a file system without locks, owns its folder."""
    try:
        # Opened for writing, which NFS wants of an exclusive lock; never created.
        with path.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return is_alive(path.with_name(OWNER))
    return False


def is_alive(owner: Path) -> bool:
    """True if the process that wrote the owner file still runs, as far as that can be told from here."""
    said, here = read_owner(owner), this_process()
    try:
        heartbeat = owner.stat().st_mtime
    except FileNotFoundError:
        return False
    if said.get("place") == here["place"] and here["began"]:
        return began(said.get("pid")) == said.get("began")
    return _now(owner.parent) - heartbeat < STALE_SECONDS


def read_owner(owner: Path) -> dict[str, Any]:
    """The owner file's content; empty if it is absent or still being written."""
    try:
        said = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(said, dict) and {"host", "pid", "since", "began", "place"} <= said.keys()
    return said if known else {}


def this_process() -> dict[str, Any]:
    """What an owner file says of this process."""
    pid = os.getpid()
    host = place = socket.gethostname()
    with contextlib.suppress(OSError):  # a container's process numbers mean nothing outside
        place = f"{host} {os.readlink('/proc/self/ns/pid')}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_STARTED))
    return {"host": host, "pid": pid, "since": since, "began": began(pid), "place": place}


def began(pid: Any) -> str | None:
    """When process ``pid`` of this machine began, in whatever unit; None if there is none, or no ``/proc``."""
    with contextlib.suppress(OSError, IndexError):
        # Field 22; the second, a name in parentheses, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _now(folder: Path) -> float:
    """The file system's time, which may not be this machine's; where nothing can be written, this machine's."""
    probe = folder / f".clock.{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
