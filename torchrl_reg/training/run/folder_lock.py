"""One process per run folder: ``flock`` where the file system has it, else an owner file with a heartbeat.

``.owner.json`` names host and process either way, so that a refusal can say whom to look for. Its time of change is the
heartbeat, judged by the file system's own clock; see :mod:`torchrl_reg.run_owner`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import weakref
from pathlib import Path

from torchrl_reg.run_owner import LOCK, OWNER, is_alive, read_owner, this_process
from torchrl_reg.training.errors import ConfigError
from torchrl_reg.training.files import write_atomically

HEARTBEAT_SECONDS = 20.0


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
            write_atomically(owner, json.dumps(this_process()) + "\n")
        self._owner, self._is_locked = owner, descriptor >= 0
        self.release = weakref.finalize(self, _release, descriptor, owner, beating)

    def remove_owner(self) -> None:
        """Takes the name off a folder that stays locked: a kill before :meth:`release` then leaves nothing behind."""
        if self._is_locked:
            self._owner.unlink(missing_ok=True)


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
            file.write(json.dumps(this_process()) + "\n")
    except FileExistsError:
        raise ConfigError(_refusal(folder)) from None


def _beat(owner: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(owner)


def _release(descriptor: int, owner: Path, beating: threading.Event) -> None:
    beating.set()
    if read_owner(owner) == this_process():
        with contextlib.suppress(OSError):
            owner.unlink()
    if descriptor >= 0:
        os.close(descriptor)


def _refusal(folder: Path) -> str:
    said = read_owner(folder / OWNER)
    who = f"process {said['pid']} on {said['host']} since {said['since']}" if said else "another process"
    return f"{folder} is being written by {who}; wait for it, end it, or choose another run.dir."
