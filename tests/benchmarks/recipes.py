"""Our recipes as benchmark cases: trained for a while in a folder of their own, timed by the speed they report."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Measure
from torchrl_reg.training.seeds.seeds_together import train_seeds


def speed(
    name: str,
    parts: Mapping[str, Any],
    algo: Mapping[str, Any],
    *,
    log_every: int = 1_000,
    per_step: int = 1,
    seeds: int = 1,
    **run: Any,
) -> Measure:
    """Steps/s of ``recipes/<name>.py``: the median over its training rows once it learns, except the first.

    ``parts`` holds what its ``Config`` takes (``env``, ``net``, ``policy``), ``algo`` and ``run`` settings;
    ``per_step`` is the number of frames per step. Several ``seeds`` are trained together and their steps added up.
    """
    run |= {"progress": False, "evaluate_every_frames": 10**9, "checkpoint_every_frames": 10**9, "eval_episodes": 1}
    run["log_every_frames"] = log_every

    def measure() -> float:
        recipe = importlib.import_module(f"recipes.{name}")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            configs = [recipe.Config(**parts) for _ in range(seeds)]
            for seed, config in enumerate(configs):
                _assign(config.run, dir=f"{folder}/{seed}", seed=seed, **run)
                _assign(config.algo, **algo)
                config.env.validate()
            with contextlib.redirect_stderr(io.StringIO()):
                train_seeds(recipe.train, configs)
            rows = [json.loads(line) for line in (Path(folder) / "0/metrics.jsonl").read_text().splitlines()]
        first = configs[0].algo.learning_starts_frames + log_every
        rates = [row["fps"] for row in rows if row["event"] == "train" and row["frames"] > first]
        if not rates:
            raise SystemExit(f"more frames must be run: {name} wrote no row of training after {first} frames.")
        return seeds * statistics.median(rates) / per_step

    return measure


def _assign(settings: Any, **values: Any) -> None:
    for name, value in values.items():
        assert hasattr(settings, name), name
        setattr(settings, name, value)
