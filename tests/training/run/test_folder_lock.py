"""Two processes never share a run folder, with flock and without."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import child
import pytest

from torchrl_reg import run_owner
from torchrl_reg.run_owner import OWNER, is_alive, is_locked
from torchrl_reg.training import ConfigError
from torchrl_reg.training.run import folder_lock
from torchrl_reg.training.run.folder_lock import FolderLock


def without_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""
    monkeypatch.setattr(fcntl, "flock", without_locks)


@pytest.mark.parametrize("flock", [fcntl.flock, without_locks], ids=["with", "without"])
def test_a_folder_has_one_owner_whose_name_is_told(tmp_path, processes, flock, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", flock)
    here, there = processes.Pipe()
    other = processes.Process(target=child.hold_folder, args=(str(tmp_path), flock is not without_locks, there))
    other.start()
    try:
        assert here.poll(200) and here.recv() == "held"
        sentence = rf"is being written by process {other.pid} on {socket.gethostname()} since 20.*; wait for it, "
        with pytest.raises(ConfigError, match=sentence):
            FolderLock(tmp_path)
        assert is_locked(tmp_path / ".lock")
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == other.pid  # the refused one left it alone
    finally:
        other.kill()
        other.join()
    assert not is_locked(tmp_path / ".lock")
    lock = FolderLock(tmp_path)  # a killed process holds no lock
    assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    lock.release()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    FolderLock(tmp_path)  # forgotten at once, and so free again
    FolderLock(tmp_path).release()


def _owner(folder: Path, age: float, **said) -> Path:
    fields = {"host": "far", "pid": os.getpid(), "since": "today", "began": "1", "place": "far pid:[1]"}
    (folder / OWNER).write_text(json.dumps({**fields, **said}))
    os.utime(folder / OWNER, (time.time() - age, time.time() - age))
    return folder / OWNER


@pytest.mark.parametrize(("age", "alive"), [(10.0, True), (run_owner.STALE_SECONDS + 20, False)])
def test_far_away_the_heartbeat_decides(tmp_path, no_flock, age, alive):
    (tmp_path / ".lock").touch()
    owner = _owner(tmp_path, age)
    assert is_alive(owner) == alive == is_locked(tmp_path / ".lock")
    if alive:
        with pytest.raises(ConfigError, match="by process .* on far since today"):
            FolderLock(tmp_path)
    else:
        _held = FolderLock(tmp_path)
        assert json.loads(owner.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("wrong_by", [-3600.0, 3600.0])
def test_heartbeats_are_judged_by_the_clock_of_the_file_system(tmp_path, monkeypatch, wrong_by):
    """Which writes them; that of this machine may be wrong."""
    ages = {10.0: True, run_owner.STALE_SECONDS + 20: False}
    owners = {}
    for age in ages:
        (tmp_path / str(age)).mkdir()
        owners[age] = _owner(tmp_path / str(age), age)
    now = time.time
    monkeypatch.setattr(run_owner.time, "time", lambda: now() + wrong_by)
    assert {age: is_alive(owner) for age, owner in owners.items()} == ages
    assert [path.name for owner in owners.values() for path in owner.parent.iterdir()] == [OWNER, OWNER]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["sleep", "a) S 1 2 (b", "((", "x )"])
def test_when_a_process_began_is_read_whatever_its_name_is(tmp_path, no_flock, name):
    (tmp_path / ".lock").touch()
    (tmp_path / name).symlink_to(shutil.which("sleep"))
    process = subprocess.Popen([tmp_path / name, "60"])
    try:
        stat, head = Path(f"/proc/{process.pid}/stat"), f"{process.pid} ({name}) "
        while not (text := stat.read_text()).startswith(head):  # not the program yet
            time.sleep(0.01)
        began = text.removeprefix(head).split()[22 - 3]  # fields are counted from 1, and two are gone
        assert run_owner.began(process.pid) == began
        owner = _owner(tmp_path, 0, **{**run_owner.this_process(), "pid": process.pid, "began": began})
        assert is_alive(owner) and is_locked(tmp_path / ".lock")
        _owner(tmp_path, 0, **{**run_owner.this_process(), "pid": process.pid, "began": str(int(began) - 1)})
        assert not is_alive(owner) and not is_locked(tmp_path / ".lock")
    finally:
        process.kill()
        process.wait()
    assert run_owner.began(process.pid) is None


def test_an_owner_file_still_being_written_counts_as_an_owner(tmp_path, no_flock):
    (tmp_path / OWNER).write_text('{"ho')
    with pytest.raises(ConfigError, match="is being written by another process; wait"):
        FolderLock(tmp_path)


def test_the_heart_beats(tmp_path, no_flock, monkeypatch):
    monkeypatch.setattr(folder_lock, "HEARTBEAT_SECONDS", 0.01)
    lock = FolderLock(tmp_path)
    os.utime(tmp_path / OWNER, (0, 0))
    end = time.monotonic() + 60
    while (tmp_path / OWNER).stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.01)
    assert (tmp_path / OWNER).stat().st_mtime > 0
    lock.release()
