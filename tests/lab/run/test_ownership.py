"""What a run folder holds of its run and refuses, and that two processes never share one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import child
import pytest
import torch
import yaml

from torchrl_reg.lab import ConfigError, RecipeConfig, RunSettings
from torchrl_reg.lab.run import ownership as folder_lock
from torchrl_reg.lab.run import run_owner
from torchrl_reg.lab.run.ownership import COMMAND, FolderLock, RunFolder
from torchrl_reg.lab.run.run_owner import OWNER, is_alive, is_locked

CPU = torch.device("cpu")


@dataclass
class _Algo:
    tau: float = 0.03
    cells: list[int] = field(default_factory=lambda: [8, 8])


@dataclass
class _Config(RecipeConfig):
    algo: _Algo = field(default_factory=_Algo)


def _config(path: Path, tau: float = 0.03, **run) -> _Config:
    return _Config(algo=_Algo(tau=tau), run=RunSettings(dir=str(path), **run))


def _open(config: _Config) -> RunFolder:
    folder = RunFolder(config)
    folder.open(CPU)
    return folder


@pytest.fixture
def closed(tmp_path) -> Path:
    """The folder of a run that has ended."""
    _open(_config(tmp_path)).close({})
    return tmp_path


def test_what_a_folder_says_about_its_run_and_its_starts(tmp_path, monkeypatch):
    COMMAND.set("python recipes/m_dqn.py algo.tau=0.1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config = _config(tmp_path, tau=0.1, device="auto")
    _open(config).close({})
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["algo"] == {"tau": 0.1, "cells": [8, 8]} and saved["run"]["seed"] == 0
    assert (saved["run"]["device"], config.run.device) == ("cpu", "auto")  # what auto turned out to be
    assert (tmp_path / "command.txt").read_text() == "python recipes/m_dqn.py algo.tau=0.1\n"
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    _open(config)
    starts = json.loads((tmp_path / "provenance.json").read_text())["starts"]
    assert [start["slurm"] for start in starts] == [{}, {"SLURM_JOB_ID": "4711"}]
    assert starts[0]["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"commit", "host", "device", "slurm", "started_at"} <= starts[0].keys()


def test_a_kill_right_after_done_json_leaves_no_owner_behind(tmp_path, monkeypatch):
    from torchrl_reg.lab.run import ownership as run_folder

    def killed(path, content):
        write(path, content)
        if path.name == "done.json":
            raise KeyboardInterrupt

    folder, write = _open(_config(tmp_path)), run_folder.write_atomically
    monkeypatch.setattr(run_folder, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.close({})
    assert folder.is_done and not (tmp_path / ".owner.json").exists()


def test_a_start_whose_versions_are_no_table_is_no_traceback(tmp_path):
    _open(_config(tmp_path)).close({})
    (tmp_path / "provenance.json").write_text('{"starts": [{"versions": ["torch"], "user_code": 3, "commit": 7}]}')
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/checkpoint-000000000100.torchrl").touch()
    assert len(_open(_config(tmp_path))._earlier_starts()) == 2


def test_the_same_settings_may_return_and_cosmetic_ones_may_differ(tmp_path):
    _open(_config(tmp_path / "run")).close({})
    elsewhere = (tmp_path / "run").rename(tmp_path / "moved")
    folder = RunFolder(_config(elsewhere, loggers=["wandb"], progress=False))
    assert folder.is_done


def test_other_settings_are_refused_with_the_difference(closed):
    before = {path: path.read_bytes() for path in closed.iterdir()}
    differences = r"settings \(algo.tau: 0.03 there, 0.5 here; run.seed: 0 there, 2 here\); choose[^\n]*$"
    with pytest.raises(ConfigError, match=differences):
        RunFolder(_config(closed, tau=0.5, seed=2))
    assert {path: path.read_bytes() for path in closed.iterdir()} == before


def test_a_resume_may_use_another_machine_and_says_so(tmp_path, monkeypatch, capsys):
    from torchrl_reg.lab.run import ownership as run_folder

    elsewhere = {"versions": {"torch": "2.11.0"}, "commit": "a" * 40, "device": "x86_64", "threads": 1}
    here = {"versions": {"torch": "2.14.0"}, "commit": "b" * 40, "device": "NVIDIA H200", "threads": 8}
    starts = iter([elsewhere, elsewhere, here, here])
    monkeypatch.setattr(run_folder, "provenance", lambda device, recipe: next(starts))
    _open(_config(tmp_path)).close({})
    _open(_config(tmp_path, threads=8, log_every_frames=10, device="cpu")).close({})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-000000000100.torchrl").touch()
    assert capsys.readouterr().err == ""
    _open(_config(tmp_path)).close({})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: this run began elsewhere (torch 2.11.0 before, 2.14.0 now; commit aaaaaaaaaa before"
    )
    assert "device x86_64 before, NVIDIA H200 now; threads 1 before, 8 now)" in line
    _open(_config(tmp_path))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.yaml", "algo: [", r"config.yaml is damaged \("),
        ("config.yaml", "a: " + "[" * 900 + "]" * 900, r"config.yaml is damaged \("),
        ("config.yaml", "", r"config.yaml is damaged \(no settings in it\)"),
        ("config.yaml", "3", r"config.yaml is damaged \("),
        ("config.yaml", "algo: ${nothing}", r"config.yaml is damaged \("),
        ("config.yaml", "a: &a [1]\nb: [*a, *a]\n", r"config.yaml is damaged \(it holds YAML aliases\)"),
        ("provenance.json", "{", r"provenance.json is damaged \(JSONDecodeError\): delete it"),
        ("provenance.json", "[]", r"provenance.json is damaged \(TypeError\): delete it"),
        ("provenance.json", "{}", r"provenance.json is damaged \(KeyError\): delete it"),
    ],
)
def test_damaged_files_are_named(closed, name, content, sentence):
    (closed / name).write_text(content)
    with pytest.raises(ConfigError, match=sentence) as refusal:
        _open(_config(closed))
    assert "\n" not in str(refusal.value)


def test_a_long_difference_is_shortened(tmp_path):
    (tmp_path / "config.yaml").write_text("".join(f"setting_{i}: 1\n" for i in range(30)))
    with pytest.raises(ConfigError, match="; and [0-9]+ more") as refusal:
        _open(_config(tmp_path))
    assert len(str(refusal.value)) < 600


def test_a_write_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("torchrl_reg.lab.run.ownership.write_atomically", fail)
    with pytest.raises(ConfigError, match="cannot be used: Read-only file system"):
        _open(_config(tmp_path / "run"))


def test_a_folder_killed_before_its_config_was_written_can_be_used(tmp_path):
    (tmp_path / ".config.yaml.partial").write_text("algo:")
    (tmp_path / ".lock").write_text("")
    _open(_config(tmp_path))
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (".", "no config.yaml but holds thesis.tex"),
        ("thesis.tex", "got the file"),
        ("thesis.tex/run", r"cannot be made: Not a directory\.$"),
        ("x" * 300, r"cannot be (used|made): File name too long\.$"),
    ],
)
def test_an_impossible_place_is_refused(tmp_path, place, sentence):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=sentence):
        _open(_config(tmp_path / place))


def test_a_run_needs_a_folder():
    with pytest.raises(ConfigError, match="run.dir must be the folder"):
        RunFolder(_Config())


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
