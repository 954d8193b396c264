"""What is known of runs that go on: states, rows as they come, planned runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from torchrl_reg.analysis.watched import Watcher


def train(frames: int, value: float) -> dict:
    return {"event": "train", "frames": frames, "return_mean": value, "fps": 10.0, "wall_seconds": frames / 10}


@pytest.fixture
def run(make_run):
    """A run at 200 of 300 frames without evaluations: its returns are a tenth of the frames, and the seed."""

    def make(folder: str, *, seed: int = 0, done: bool = False, **more) -> Path:
        rows = [train(frames, frames / 10 + seed) for frames in (100, 200)]
        return make_run(folder, (), train=rows, seed=seed, done=done, **more)

    return make


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher([tmp_path])


def test_states(run, tmp_path: Path, watcher: Watcher) -> None:
    paths = [run(f"seed={seed}", seed=seed, done=seed == 0) for seed in range(5)]
    (tmp_path / "seed=1.failed").write_text("{}")
    (paths[2] / "metrics.jsonl").unlink()
    os.utime(paths[4] / "metrics.jsonl", (0, 0))
    watcher.refresh()
    assert [run.state() for run in watcher.runs.values()] == ["done", "failed", "waiting", "running", "silent"]


def test_runs_appear_vanish_and_resume_between_two_looks(run, watcher: Watcher) -> None:
    first = run("seed=0")
    watcher.refresh()
    run("seed=1", seed=1)
    (first / "metrics.jsonl").write_text(json.dumps(train(100, 3.0)) + "\n")
    watcher.refresh()
    frames, returns = watcher.runs[first].returns("train")
    assert watcher.runs[first].frames == 100 and (frames.tolist(), returns.tolist()) == ([100], [3.0])
    assert len(watcher.runs) == 2
    shutil.rmtree(first)
    watcher.refresh()
    assert [path.name for path in watcher.runs] == ["seed=1"]


def test_a_command_written_after_the_config_names_the_recipe(run, watcher: Watcher) -> None:
    path = run("seed=0")
    command = (path / "command.txt").read_text()
    (path / "command.txt").unlink()
    watcher.refresh()
    assert [group.name for group in watcher.groups()] == ["unknown"]
    (path / "command.txt").write_text(command)
    watcher.refresh()
    assert [group.name for group in watcher.groups()] == ["m_dqn"] and watcher.runs[path].frames == 200


def test_the_latest_return_is_that_of_the_last_frame_all_seeds_reached(run, watcher: Watcher) -> None:
    run("m/seed=0")
    with (run("m/seed=1", seed=1) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train(250, 99.0)) + "\n")
    watcher.refresh()
    (group,) = watcher.groups()
    assert group.latest("train") == 20.5 and group.latest("eval") is None
    assert [run.remaining_seconds for run in group.runs] == [10.0, 5.0]
