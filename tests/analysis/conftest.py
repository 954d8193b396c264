"""Run folders as training writes them, without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

CONFIG: dict[str, Any] = {
    "net.num_cells": [128, 128],
    "run.device": "auto",
    "run.loggers": [],
    "run.progress": False,
    "algo.total_frames": 300,
    "algo.tau": 0.03,
    "algo.alpha": 0.9,
    "algo.learning_rate": 1e-3,
}
START = {"host": "node1", "device": "cpu", "versions": {"torch": "2.14.0"}}


def write_files(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    recipe: str = "m_dqn",
    env: str = "cartpole",
    seed: int = 0,
    commit: str | None = "a" * 40,
    done: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any],
) -> Path:
    """A run folder with these rows; it is finished if ``done`` is there."""
    path.mkdir(parents=True)
    name, _, game = env.partition("/")
    config: dict[str, Any] = {"env": {"name": name, "game": game}, "run": {"seed": seed, "dir": str(path)}}
    for key, value in settings.items():
        section, _, last = key.partition(".")
        config.setdefault(section, {})[last] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "command.txt").write_text(f"python recipes/{recipe}.py run.seed={seed} run.dir={path.name}\n")
    start = {"started_at": f"2026-01-0{seed % 9 + 1}", "commit": commit, "uncommitted_changes": commit == "b" * 40}
    (path / "provenance.json").write_text(json.dumps({"starts": [START | start]}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done is not None:
        (path / "done.json").write_text(json.dumps(done))
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run("m_dqn/a/seed=0", [1.0, 2.0], env=, seed=, train=, done=, commit=, every=, algo__tau=.1)``."""

    def make(
        folder: str,
        returns: Sequence[float | None] = (1.0, 2.0, 3.0),
        *,
        train: Sequence[Mapping[str, Any]] = ({"event": "train", "frames": 50, "loss": 1.0, "return_mean": None},),
        done: bool = True,
        every: int = 100,
        **more: Any,
    ) -> Path:
        settings = CONFIG | {key.replace("__", "."): more.pop(key) for key in list(more) if "__" in key}
        rows = [
            *train,
            *({"event": "eval", "frames": every * i, "return_greedy_mean": v} for i, v in enumerate(returns, 1)),
        ]
        end = {"frames": every * len(returns)} if done else None
        return write_files(tmp_path / folder, rows, done=end, settings=settings, **more)

    return make


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """``write_run(root, recipe=, env=, seed=, settings=, scores=, done=, folder=)``: a folder as sweeps name it.

    A run of ``100 len(scores)`` frames with an evaluation and a training row every 100.
    """

    def write(
        root: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        scores: Sequence[float | None] = (1.0, 2.0),
        done: bool = True,
        folder: str | None = None,
        recipe: str = "m_dqn",
        env: str = "cartpole",
        seed: int = 0,
    ) -> Path:
        named = {"tau": 0.03, **(settings or {})}
        path = root / recipe / env / (folder or ",".join(f"{key}={value}" for key, value in named.items()))
        rows: list[dict[str, Any]] = []
        for i, score in enumerate(scores, 1):
            diagnostics = {"loss": 1.0 / i, "entropy": 0.5 + seed / 10 - i / 100, "kl": None, "tau": 0.03, "fps": 50.0}
            train = {"event": "train", "updates": i, "return_mean": score, "wall_seconds": 2.0 * i, **diagnostics}
            rows += [{**train, "frames": 100 * i}, {"event": "eval", "frames": 100 * i, "return_greedy_mean": score}]
        end = {"frames": 100 * len(scores), "wall_seconds": 2.0 * len(scores)} if done else None
        algo = {f"algo.{key}": value for key, value in ({"total_frames": 200} | named).items()}
        who = {"recipe": recipe, "env": env, "seed": seed, "commit": "0123456789abcdef"}
        return write_files(path / f"seed={seed}", rows, done=end, settings=algo, **who)

    return write
