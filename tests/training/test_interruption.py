"""Signals, damaged checkpoints and full disks, seen from outside: exit codes and one sentence."""

from __future__ import annotations

import os
import signal
import time

import pytest


def _wait_for_checkpoint(folder, process) -> None:
    while not list(folder.glob("checkpoints/checkpoint-*.torchrl")):
        assert process.is_alive()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)]
)
def test_a_signal_ends_the_run_with_one_line_that_says_how_to_go_on(start, tmp_path, number, code):
    # Not compiled, as so long a run would be: PyTorch's compiler warns where there is no GPU.
    settings = ["run.checkpoint_every_frames=100", "algo.total_frames=1000000", "run.compile=false"]
    process = start("run.dir=run", *settings)
    _wait_for_checkpoint(tmp_path / "run", process)
    os.kill(process.pid, number)
    process.join(20)
    assert process.exitcode == code
    (line,) = (tmp_path / "stderr.txt").read_text().strip().splitlines()
    assert line.startswith("stopped; the same command continues: python ")
    assert "run.dir=run" in line and "tiny_dqn.py" in line


def test_a_damaged_checkpoint_stops_the_run_until_it_is_removed(start, finish, kill_when, tmp_path):
    arguments = ["run.dir=run", "run.checkpoint_every_frames=100", "algo.total_frames=500"]
    folder = tmp_path / "run" / "checkpoints"
    kill_when(start(*arguments), lambda: len(list(folder.glob("checkpoint-*.torchrl"))) == 2)
    newest = sorted(folder.glob("checkpoint-*.torchrl"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    files = sorted(folder.rglob("checkpoint-*"))
    assert finish(*arguments) == 1
    (line,) = (tmp_path / "stderr.txt").read_text().strip().splitlines()
    assert line.startswith(f"Checkpoint run/checkpoints/{newest.name} is damaged")
    assert sorted(folder.rglob("checkpoint-*")) == files
    newest.unlink()
    assert finish(*arguments) == 0


def test_a_full_disk_stops_the_run_in_one_sentence_and_it_goes_on_later(start, finish, tmp_path):
    resource = pytest.importorskip("resource")
    arguments = ["run.dir=run", "run.checkpoint_every_frames=100", "algo.total_frames=300"]
    process = start(*arguments)
    _wait_for_checkpoint(tmp_path / "run", process)
    # No file may grow beyond 3 kB from now on; a checkpoint takes 20.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
    process.join(20)
    if process.exitcode == 0:
        pytest.skip("the run was over before the limit came")
    assert process.exitcode == 1
    (line,) = (tmp_path / "stderr.txt").read_text().strip().splitlines()
    assert "could not be written to run/checkpoints" in line and "earlier checkpoints are intact" in line
    assert finish(*arguments) == 0


@pytest.mark.parametrize("damage", ["deleted", "shortened", "altered"])
def test_a_damaged_record_is_noticed_on_resume(start, finish, kill_when, tmp_path, damage):
    arguments = ["run.dir=run", "run.checkpoint_every_frames=100", "algo.total_frames=500"]
    folder = tmp_path / "run"
    kill_when(start(*arguments), lambda: len(list(folder.glob("checkpoints/checkpoint-*.torchrl"))) == 2)
    rows = folder / "metrics.jsonl"
    if damage == "deleted":
        rows.unlink()
    elif damage == "shortened":
        os.truncate(rows, 100)
    else:
        rows.write_text(rows.read_text().replace('"event": "train"', '"event": "brain"', 1))
    assert finish(*arguments) == 1
    (line,) = (tmp_path / "stderr.txt").read_text().strip().splitlines()
    assert line.startswith("run/metrics.jsonl is ") and "delete run/checkpoints and run the same command" in line
    for path in sorted((folder / "checkpoints").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert finish(*arguments) == 0
    assert "\0" not in rows.read_text()
