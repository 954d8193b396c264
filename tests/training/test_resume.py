"""A run killed at any instant and started again ends like a run that was never interrupted."""

from __future__ import annotations

import io
import json
import random
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_reg.training import read_metrics, strip_wall_clock

CHECKPOINTS = ["run.checkpoint_every_frames=200"]


def _rows(folder: Path) -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def _final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last checkpoint: weights, target, optimizer, exploration."""
    (path,) = (folder / "checkpoints").glob("*.torchrl")
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{name}/{key}")
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                walk(item, f"{name}/{index}")

    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith(".pt"):
                content = io.BytesIO(archive.read(member))
                walk(torch.load(content, weights_only=True), member)
    return tensors


def _assert_same_run(one: Path, other: Path) -> None:
    assert _rows(one) == _rows(other)
    first, second = _final_tensors(one), _final_tensors(other)
    assert first.keys() == second.keys()
    assert any("loss" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("checkpoint-*.torchrl"))


@pytest.mark.parametrize("setting", ["algo.prioritized=false", "algo.prioritized=true", "run.overlap=true"])
def test_three_sigkills_change_nothing(start, finish, kill_when, tmp_path, setting):
    settings = [*CHECKPOINTS, "algo.total_frames=850", "algo.max_grad_norm=0.5", setting]
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
    resumed_at = int(_checkpoints(killed)[-1].stem.partition("-")[2])
    process = start("run.dir=killed", *settings)
    pause = random.uniform(0.0, 0.3)
    kill_when(process, lambda: len(_rows(killed)) > 0.8 * len(rows) and not time.sleep(pause))
    assert int(_checkpoints(killed)[-1].stem.partition("-")[2]) > resumed_at

    assert finish("run.dir=killed", *settings) == 0
    _assert_same_run(tmp_path / "whole", killed)


def test_two_runs_of_one_seed_agree_and_another_seed_differs(finish, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        assert finish(f"run.dir={name}", f"run.seed={seed}", "algo.total_frames=300") == 0
    _assert_same_run(tmp_path / "one", tmp_path / "two")
    assert _rows(tmp_path / "one") != _rows(tmp_path / "other")


def test_evaluating_more_often_changes_no_training_row(finish, tmp_path):
    for every in (100, 10_000):
        arguments = [f"run.dir={every}", "algo.total_frames=300"]
        assert finish(*arguments, f"run.evaluate_every_frames={every}") == 0
    often, rarely = ([row for row in _rows(tmp_path / name) if row["event"] == "train"] for name in ("100", "10000"))
    assert often == rarely


def test_a_finished_run_is_not_run_again(finish, tmp_path):
    assert finish("run.dir=done", "algo.total_frames=100") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*")}
    assert finish("run.dir=done", "algo.total_frames=100") == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "done").rglob("*")} == before
    assert "already finished: done" in (tmp_path / "stdout.txt").read_text()


def test_a_done_json_that_a_crash_emptied_is_written_again(finish, tmp_path):
    for name in ("whole", "emptied"):
        assert finish(f"run.dir={name}", "algo.total_frames=300", *CHECKPOINTS) == 0
    done = tmp_path / "emptied" / "done.json"
    said = json.loads(done.read_text())
    done.write_bytes(b"")
    assert finish("run.dir=emptied", "algo.total_frames=300", *CHECKPOINTS) == 0
    assert {**json.loads(done.read_text()), "wall_seconds": said["wall_seconds"]} == said
    _assert_same_run(tmp_path / "whole", tmp_path / "emptied")


def test_a_finished_run_keeps_its_weights_but_not_its_replay_buffer(finish, tmp_path):
    assert finish("run.dir=done", "algo.total_frames=300", *CHECKPOINTS) == 0
    assert [path.name for path in (tmp_path / "done" / "checkpoints").iterdir()] == ["checkpoint-000000000304.torchrl"]
