"""What is known of runs that go on: states, rows as they come, planned runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from torchrl_reg.lab.analysis.sweeps import Watcher


def row(frames: int, value: float) -> str:
    numbers = {"return_mean": value, "fps": 10.0, "wall_seconds": frames / 10}
    return json.dumps({"event": "train", "frames": frames, **numbers}) + "\n"


@pytest.fixture
def watcher(tmp_path: Path) -> Watcher:
    return Watcher([tmp_path])


def test_states(going, tmp_path: Path, watcher: Watcher) -> None:
    paths = [going(f"seed={seed}", seed=seed, done=seed == 0) for seed in range(5)]
    paths.append(going("seed=5", seed=5, frames=(100, 5000)))  # 490 seconds between its rows
    (tmp_path / "seed=1.failed").write_text("{}")
    (paths[2] / "metrics.jsonl").unlink()
    for path, quiet in zip(paths[3:], (200, 400, 1000), strict=True):
        os.utime(path / "metrics.jsonl", (0, time.time() - quiet))
    watcher.refresh()
    states = ["done", "failed", "waiting", "running", "silent", "running"]
    assert [run.state() for run in watcher.runs.values()] == states


def test_runs_appear_vanish_and_resume_between_two_looks(going, watcher: Watcher) -> None:
    first = going("seed=0")
    watcher.refresh()
    second = going("seed=1", seed=1)
    (first / "metrics.jsonl").write_text(row(100, 3.0))
    watcher.refresh()
    frames, returns = watcher.runs[first].returns("train")
    assert (frames.tolist(), returns.tolist(), watcher.runs[first].frames) == ([100], [3.0], 100)
    shutil.rmtree(first)
    watcher.refresh()
    assert list(watcher.runs) == [second]


def test_a_command_written_after_the_config_names_the_recipe(going, watcher: Watcher) -> None:
    path = going("seed=0")
    (path / "command.txt").rename(path / "later")
    watcher.refresh()
    assert [group.name for group in watcher.groups()] == ["unknown"]
    (path / "later").rename(path / "command.txt")
    watcher.refresh()
    assert [group.name for group in watcher.groups()] == ["m_dqn"] and watcher.runs[path].frames == 200


def test_the_latest_return_is_that_of_the_last_frame_all_seeds_reached(going, watcher: Watcher) -> None:
    going("m/seed=0")
    with (going("m/seed=1", seed=1) / "metrics.jsonl").open("a") as file:
        file.write(row(250, 99.0))
    watcher.refresh()
    (group,) = watcher.groups()
    assert group.latest("train") == 20.5 and group.latest("eval") is None
    assert [run.remaining_seconds for run in group.runs] == [20.0, 15.0]
