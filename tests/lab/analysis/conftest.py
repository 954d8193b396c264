"""Run folders in the format of training, without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

CONFIG = {"net__num_cells": [128, 128], "run__device": "auto", "run__loggers": [], "run__progress": False}
CONFIG |= {"algo__total_frames": 300, "algo__tau": 0.03, "algo__alpha": 0.9, "algo__learning_rate": 1e-3}
START = {"host": "node1", "device": "cpu", "versions": {"torch": "2.14.0"}}
TRAINED = {"event": "train", "frames": 50, "loss": 1.0, "return_mean": None}


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run("m_dqn/a/seed=0", [1.0, 2.0], env=, seed=, train=, done=, commit=, every=, algo__tau=.1)``."""

    def make(folder, returns=(1.0, 2.0, 3.0), *, recipe="m_dqn", env="cartpole", seed=0, **more: Any) -> Path:
        path, done, commit = tmp_path / folder, more.pop("done", True), more.pop("commit", "a" * 40)
        every, rows = more.pop("every", 100), list(more.pop("train", [TRAINED]))
        rows += [{"event": "eval", "frames": every * i, "return_greedy_mean": v} for i, v in enumerate(returns, 1)]
        name, _, game = env.partition("/")
        config: dict[str, Any] = {"env": {"name": name, "game": game}, "run": {"seed": seed, "dir": str(path)}}
        for key, value in (CONFIG | more).items():
            section, _, last = key.partition("__")
            config.setdefault(section, {})[last] = value
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (path / "command.txt").write_text(f"python recipes/{recipe}.py run.seed={seed} run.dir={path.name}\n")
        start = {"started_at": f"2026-01-0{seed % 9 + 1}", "commit": commit, "uncommitted_changes": commit == "b" * 40}
        (path / "provenance.json").write_text(json.dumps({"starts": [START | start]}))
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if done:
            (path / "done.json").write_text(json.dumps({"frames": every * len(returns)}))
        return path

    return make


@pytest.fixture
def write_run(make_run: Callable[..., Path]) -> Callable[..., Path]:
    """``write_run(root, recipe=, env=, seed=, settings=, scores=, done=, folder=)``: a folder named as in a sweep.

    A run of ``100 len(scores)`` frames with an evaluation and a training row every 100.
    """

    def write(
        root: Path, *, settings=None, scores=(1.0, 2.0), folder=None, recipe="m_dqn", env="cartpole", seed=0, done=True
    ) -> Path:
        named = {"tau": 0.03, **(settings or {})}
        path = root / recipe / env / (folder or ",".join(f"{key}={value}" for key, value in named.items()))
        train = []
        for i, score in enumerate(scores, 1):
            diagnostics = {"loss": 1.0 / i, "entropy": 0.5 + seed / 10 - i / 100, "kl": None, "tau": 0.03, "fps": 50.0}
            times = {"frames": 100 * i, "updates": i, "wall_seconds": 2.0 * i}
            train.append({"event": "train", "return_mean": score, **times, **diagnostics})
        who = {"recipe": recipe, "env": env, "seed": seed, "commit": "0123456789abcdef", "done": done}
        algo = {f"algo__{key}": value for key, value in named.items()}
        return make_run(path / f"seed={seed}", scores, train=train, **who, **algo)

    return write
