"""Run folders as training writes them, without training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

CONFIG: dict[str, Any] = {
    "env.name": "cartpole",
    "env.game": "",
    "net.num_cells": [128, 128],
    "run.device": "auto",
    "run.loggers": [],
    "run.progress": False,
    "algo.total_frames": 300,
    "algo.tau": 0.03,
    "algo.alpha": 0.9,
    "algo.learning_rate": 1e-3,
}
MakeRun = Callable[..., Path]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run("m_dqn/a/seed=0", [1.0, 2.0], recipe=, seed=, done=, commit=, algo__tau=.1)``."""

    def make(
        folder: str,
        returns: Sequence[float] = (1.0, 2.0, 3.0),
        *,
        recipe: str = "m_dqn",
        env: str = "cartpole",
        seed: int = 0,
        done: bool = True,
        commit: str | None = "a" * 40,
        every: int = 100,
        **settings: Any,
    ) -> Path:
        path = tmp_path / folder
        path.mkdir(parents=True)
        name, _, game = env.partition("/")
        flat = CONFIG | {"env.name": name, "env.game": game, "run.seed": seed, "run.dir": str(path)}
        flat |= {key.replace("__", "."): value for key, value in settings.items()}
        (path / "config.yaml").write_text(yaml.safe_dump(nested(flat), sort_keys=False))
        (path / "command.txt").write_text(f"python recipes/{recipe}.py run.seed={seed}\n")
        starts = [{"commit": commit, "uncommitted_changes": commit == "b" * 40}]
        (path / "provenance.json").write_text(json.dumps({"starts": starts}))
        rows: list[dict[str, Any]] = [{"event": "train", "frames": 50, "loss": 1.0, "return_mean": None}]
        rows += [
            {"event": "eval", "frames": every * (i + 1), "return_greedy_mean": value} for i, value in enumerate(returns)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if done:
            (path / "done.json").write_text(json.dumps({"frames": every * len(returns)}))
        return path

    return make
