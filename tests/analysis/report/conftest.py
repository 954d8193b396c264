"""Small sweeps on disk, with numbers one can check by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run() -> WriteRun:
    return _write_run


def _write_run(
    root: Path,
    *,
    recipe: str = "m_dqn",
    env: str = "cartpole",
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    scores: tuple[float | None, ...] = (1.0, 2.0),
    done: bool = True,
    commit: str = "0123456789abcdef",
    folder: str | None = None,
    total: int = 200,
) -> Path:
    """A run of ``100 len(scores)`` frames with an evaluation and a training row every 100."""
    settings = {"tau": 0.03, **(settings or {})}
    name = folder or ",".join(f"{key}={value}" for key, value in settings.items())
    path = root / recipe / env / name / f"seed={seed}"
    path.mkdir(parents=True)
    algo = {"total_frames": total, **settings}
    config = {"env": {"name": env, "game": ""}, "run": {"seed": seed, "dir": str(path)}, "algo": algo}
    (path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    (path / "command.txt").write_text(f"python recipes/{recipe}.py env={env} run.seed={seed} run.dir={path.name}\n")
    start = {"started_at": f"2026-01-0{seed + 1}T00:00:00+0000", "commit": commit, "host": "node1", "device": "cpu"}
    (path / "provenance.json").write_text(json.dumps({"starts": [start | {"versions": {"torch": "2.14.0"}}]}))
    rows: list[dict[str, Any]] = []
    for i, score in enumerate(scores, 1):
        diagnostics = {"loss": 1.0 / i, "entropy": 0.5 + seed / 10 - i / 100, "kl": None, "tau": 0.03}
        train = {"event": "train", "frames": 100 * i, "updates": i, "return_mean": score, **diagnostics, "fps": 50.0}
        rows += [train | {"wall_seconds": 2.0 * i}]
        rows += [{"event": "eval", "frames": 100 * i, "return_greedy_mean": score, "return_greedy_std": 0.0}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (path / "done.json").write_text(json.dumps({"frames": 100 * len(scores), "wall_seconds": 2.0 * len(scores)}))
    return path
