"""A run stopped at any instant and started again ends like one that was never interrupted; what it says meanwhile."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_reg.training import read_metrics, strip_wall_clock


def _rows(folder: Path, event: str = "") -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl") if event in row["event"]]


def _tensors(value: Any, name: str) -> dict[str, torch.Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: found for part, item in items for key, found in _tensors(item, f"{name}/{part}").items()}


def _final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, target, optimizer, exploration."""
    (path,) = (folder / "checkpoints").glob("*.torchrl")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pt")]
        return _tensors({name: torch.load(io.BytesIO(archive.read(name)), weights_only=True) for name in names}, "")


def _assert_same_weights(one: Path, other: Path) -> None:
    first, second = _final_tensors(one), _final_tensors(other)
    assert first.keys() == second.keys() and any("loss" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("checkpoint-*.torchrl"))


def _last_line(folder: Path) -> str:
    """The one line on stderr since it was read last."""
    (line,) = (folder / "stderr.txt").read_text().strip().splitlines()
    (folder / "stderr.txt").write_text("")
    return line


@pytest.mark.parametrize("setting", ["algo.prioritized=true", "run.overlap=true"])
def test_three_sigkills_change_nothing(start, finish, kill_when, tmp_path, setting):
    settings = ["run.checkpoint_every_frames=200", "algo.total_frames=850", "algo.max_grad_norm=0.5", setting]
    assert finish("run.dir=whole", *settings) == 0
    killed = tmp_path / "killed"
    rows = _rows(tmp_path / "whole")
    assert [row["event"] for row in rows].count("eval") == 3  # two on schedule, one at the end

    # Before the first checkpoint, while one is being written, and anywhere after the third.
    kill_when(start("run.dir=killed", *settings), lambda: (killed / "metrics.jsonl").exists())
    assert not _checkpoints(killed)
    saving = killed / "checkpoints"
    kill_when(
        start("run.dir=killed", *settings),
        lambda: len(_checkpoints(killed)) == 2 and any(saving.rglob("*partial*")),
    )
    resumed_at = _checkpoints(killed)[-1]
    process = start("run.dir=killed", *settings)
    pause = random.uniform(0.0, 0.3)
    kill_when(process, lambda: len(_rows(killed)) > 0.8 * len(rows) and not time.sleep(pause))
    assert _checkpoints(killed)[-1] > resumed_at

    assert finish("run.dir=killed", *settings) == 0
    assert _rows(killed) == rows
    _assert_same_weights(tmp_path / "whole", killed)


def test_the_seed_makes_the_run_and_evaluating_more_often_changes_nothing(finish, tmp_path):
    short = ["algo.total_frames=300", "run.evaluate_every_frames"]
    for name, seed, every in (("one", 3, 10_000), ("two", 3, 100), ("other", 4, 10_000)):
        assert finish(f"run.dir={name}", f"run.seed={seed}", f"{short[1]}={every}", short[0]) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert _rows(one, "train") == _rows(two, "train") != _rows(tmp_path / "other", "train")
    assert _rows(one, "eval") == _rows(two, "eval")[-1:] != _rows(tmp_path / "other", "eval")
    _assert_same_weights(one, two)


def test_a_finished_run_keeps_its_weights_and_is_not_run_again(finish, tmp_path):
    arguments, folder = ["run.dir=done", "run.checkpoint_every_frames=200", "algo.total_frames=300"], tmp_path / "done"
    assert finish(*arguments) == 0
    assert os.listdir(folder / "checkpoints") == ["checkpoint-000000000304.torchrl"]  # and no replay buffer
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert finish(*arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "already finished: done" in (tmp_path / "stdout.txt").read_text()
    # Without a file that it had, it is not said to be finished.
    for name in ("metrics.jsonl", "policy.safetensors", "checkpoints/checkpoint-000000000304.torchrl"):
        if name in json.loads((folder / "done.json").read_text())["files"]:
            (folder / name).rename(tmp_path / "away")
            assert finish(*arguments) == 1
            line = _last_line(tmp_path)
            assert line.startswith(f"done holds a finished run without its {name}; left are checkpoints, command.txt")
            (tmp_path / "away").rename(folder / name)
    assert len(json.loads((folder / "done.json").read_text())["files"]) >= 2
    # A done.json that a crash emptied is written again.
    shutil.copytree(folder, tmp_path / "whole")
    said = json.loads((folder / "done.json").read_text())
    (folder / "done.json").write_bytes(b"")
    assert finish(*arguments) == 0
    assert json.loads((folder / "done.json").read_text()) | {"wall_seconds": said["wall_seconds"]} == said
    assert _rows(folder) == _rows(tmp_path / "whole")
    _assert_same_weights(folder, tmp_path / "whole")


def _wait_for_checkpoint(folder: Path, process) -> None:
    while not _checkpoints(folder):
        assert process.is_alive()
        time.sleep(0.005)


def test_a_signal_ends_the_run_with_one_line_that_says_how_to_go_on(start, tmp_path):
    # Not compiled, as so long a run would be: PyTorch's compiler warns where there is no GPU.
    settings = ["run.checkpoint_every_frames=100", "algo.total_frames=1000000", "run.compile=false"]
    process = start("run.dir=run", *settings)
    _wait_for_checkpoint(tmp_path / "run", process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 143
    line = _last_line(tmp_path)
    frames = int(_checkpoints(tmp_path / "run")[-1].stem[-12:])  # none of the stop: it would end the episodes
    assert frames % 100 < 16
    assert line.startswith(f"stopped; the same command continues from frame {frames:,}, as a checkpoint in between ")
    assert "run.dir=run" in line and "tiny_dqn.py" in line


def test_damage_stops_the_run_until_it_is_removed(start, finish, kill_when, tmp_path):
    arguments, folder = ["run.dir=run", "run.checkpoint_every_frames=100", "algo.total_frames=500"], tmp_path / "run"
    kill_when(start(*arguments), lambda: len(_checkpoints(folder)) == 2)
    newest = _checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    before = _checkpoints(folder)
    assert finish(*arguments) == 1
    assert _last_line(tmp_path).startswith(f"Checkpoint run/checkpoints/{newest.name} is damaged")
    assert _checkpoints(folder) == before
    newest.unlink()
    rows = folder / "metrics.jsonl"
    rows.write_text(rows.read_text().replace('"event": "train"', '"event": "brain"', 1))
    assert finish(*arguments) == 1
    line = _last_line(tmp_path)
    assert line.startswith("run/metrics.jsonl is ") and "delete run/checkpoints and run the same command" in line
    shutil.rmtree(folder / "checkpoints")
    assert finish(*arguments) == 0
    assert {row["event"] for row in _rows(folder)} == {"train", "eval"}


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
    line = _last_line(tmp_path)
    assert "could not be written to run/checkpoints" in line and "earlier checkpoints are intact" in line
    assert finish(*arguments) == 0
