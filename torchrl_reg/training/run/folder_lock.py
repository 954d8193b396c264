"""One process per run folder: ``flock`` where the file system has it, else an owner file with a heartbeat.

``.owner.json`` names host and process either way, so that a refusal can say whom to look for. Its time of change is the
heartbeat, judged by the file system's own clock. ``slurm/array_element.py`` reads the same two files.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from torchrl_reg.training.errors import ConfigError
from torchrl_reg.training.files import write_atomically

LOCK, OWNER = ".lock", ".owner.json"
HEARTBEAT_SECONDS = 20.0
#: An owner on another machine that gave no heartbeat for this long is gone.
STALE_SECONDS = 180.0


class FolderLock:
    """Held until :meth:`release`, until the object is forgotten, or until its process ends, however that happens.

    Raises:
        ConfigError: another process holds ``folder``; the sentence names it.
        OSError: the lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o666)
        owner, beating = folder / OWNER, threading.Event()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(_refusal(folder)) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            descriptor = -1
            _own(folder)
            threading.Thread(target=_beat, args=(owner, beating), daemon=True).start()
        else:
            write_atomically(owner, json.dumps(_this_process()) + "\n")
        self.release = weakref.finalize(self, _release, descriptor, owner, beating)


def is_alive(owner: Path) -> bool:
    """True if the process that wrote the owner file still runs, as far as that can be told from here."""
    said = _read(owner)
    try:
        age = _now(owner.parent) - owner.stat().st_mtime
    except FileNotFoundError:
        return False
    here = _this_process()
    if said.get("place") == here["place"] and here["began"]:
        return _began(said.get("pid")) == said.get("began")
    return age < STALE_SECONDS


def _own(folder: Path) -> None:
    """Makes the owner file, which only one of several processes can."""
    owner = folder / OWNER
    if owner.exists() and not is_alive(owner):
        # Moved away under a name of our own: of several that see it stale, one gets it.
        stale = folder / f"{OWNER}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(owner, stale)
            if is_alive(stale):  # another process was quicker, and this is its file
                with contextlib.suppress(FileExistsError):
                    os.link(stale, owner)
            stale.unlink()
    try:
        with open(owner, "x", encoding="utf-8") as file:
            file.write(json.dumps(_this_process()) + "\n")
    except FileExistsError:
        raise ConfigError(_refusal(folder)) from None


def _beat(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _release(descriptor: int, owner: Path, beating: threading.Event) -> None:
    beating.set()
    if _read(owner) == _this_process():
        with contextlib.suppress(OSError):
            owner.unlink()
    if descriptor >= 0:
        os.close(descriptor)


def _refusal(folder: Path) -> str:
    said = _read(folder / OWNER)
    who = f"process {said['pid']} on {said['host']} since {said['since']}" if said else "another process"
    return f"{folder} is being written by {who}; wait for it, end it, or choose another run.dir."


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    host = place = socket.gethostname()
    with contextlib.suppress(OSError):  # a container's process numbers mean nothing outside
        place = f"{host} {os.readlink('/proc/self/ns/pid')}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_STARTED))
    return {"host": host, "pid": pid, "since": since, "began": _began(pid), "place": place}


def _began(pid: Any) -> str | None:
    """When process ``pid`` of this machine began, in whatever unit; None if there is none, or no ``/proc``."""
    with contextlib.suppress(OSError, IndexError):
        # Field 22; the second, a name in parentheses, may hold spaces.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _read(owner: Path) -> dict[str, Any]:
    """The owner file's content; empty if it is absent or still being written."""
    try:
        said = json.loads(owner.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(said, dict) and {"host", "pid", "since", "began", "place"} <= said.keys()
    return said if known else {}


def _now(folder: Path) -> float:
    """The file system's time, which may not be this machine's."""
    probe = folder / f".clock.{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


_STARTED = time.time()
