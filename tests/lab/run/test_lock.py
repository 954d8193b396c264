"""One process holds a lock, with flock and without; killing it releases the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

import child
import pytest

from torchrl_reg.lab.run.lock import LOCK, LockedError, acquire, is_locked

FLOCK_ERRORS = [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", FLOCK_ERRORS)
def test_a_lock_has_one_owner_whose_name_is_told_and_a_killed_one_has_gone(tmp_path, processes, error, monkeypatch):
    if error:
        monkeypatch.setattr(fcntl, "flock", child.failing_flock(error))
    path, (here, there) = tmp_path / LOCK, processes.Pipe()
    other = processes.Process(target=child.hold_lock, args=(str(path), error, there))
    other.start()
    try:
        assert here.poll(200) and here.recv() == "held"
        owner = f"process {other.pid} on {socket.gethostname()} since 20"
        before = path.read_text()
        with pytest.raises(LockedError, match=rf"^{owner}[^\n]*$") as refusal:
            acquire(path)
        assert is_locked(path) and path.read_text() == before
        assert str(refusal.value).endswith(f" (if it is gone, delete {path}.soft)") == bool(error)
    finally:
        other.kill()
        other.join()
    assert not is_locked(path)
    lock = acquire(path)
    assert is_locked(path) and path.read_text().startswith(f"process {os.getpid()} on ")
    lock.release()
    assert not is_locked(path) and names(tmp_path) == [LOCK]
    acquire(path)  # forgotten at once, and so free again
    acquire(path).release()


@pytest.mark.parametrize("process", [1, os.getpid()], ids=["of init", "of this process"])
def test_without_flock_a_process_of_another_machine_is_not_taken_for_dead(tmp_path, monkeypatch, process):
    monkeypatch.setattr(fcntl, "flock", child.failing_flock(errno.ENOLCK))
    path = tmp_path / LOCK
    (tmp_path / f"{LOCK}.soft").write_text(f"{process}\nfar\n")
    path.touch()
    assert is_locked(path)
    with pytest.raises(LockedError, match=rf"^another process \(if it is gone, delete {path}.soft\)$"):
        acquire(path)
    (tmp_path / f"{LOCK}.soft").unlink()
    acquire(path).release()


def test_whoever_asks_writes_nothing_and_keeps_nobody_out(tmp_path):
    path, asking = tmp_path / LOCK, threading.Event()
    assert not is_locked(path) and names(tmp_path) == []

    def hold() -> None:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            asking.set()
            time.sleep(0.1)  # longer than any question

    path.write_text("\x1b]0;title\x07")
    assert not is_locked(path) and path.read_text() == "\x1b]0;title\x07"
    thread = threading.Thread(target=hold)
    thread.start()
    asking.wait()
    lock = acquire(path)
    thread.join()
    lock.release()


def test_a_lock_that_may_only_be_read_is_no_error(tmp_path, monkeypatch):
    (tmp_path / LOCK).mkdir()
    assert not is_locked(tmp_path / LOCK)
    with pytest.raises(IsADirectoryError):
        acquire(tmp_path / LOCK)
