"""Our recipes as benchmark cases: trained for a while in a folder of their own, timed by the speed they report."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.training.seeds.seeds_together import train_seeds


def speed(
    name: str,
    parts: Mapping[str, Any],
    algo: Mapping[str, Any],
    *,
    log_every: int = 1_000,
    per_step: int = 1,
    seeds: int = 1,
    device: str = "cpu",
    **run: Any,
) -> Callable[[], float]:
    """Steps/s of ``recipes/<name>.py``: the median over its training rows once it learns, except the first.

    ``parts`` holds what its ``Config`` takes (``env``, ``net``, ``policy``), ``algo`` and ``run`` settings;
    ``per_step`` is the number of frames per step. Several ``seeds`` are trained together and their steps added up.
    """

    def measure() -> float:
        recipe = recipe_module(name)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            configs = [recipe.Config(**parts) for _ in range(seeds)]
            for seed, config in enumerate(configs):
                _assign(config.run, dir=f"{folder}/{seed}", seed=seed, progress=False, device=device, **run)
                _assign(config.run, evaluate_every_frames=10**9, checkpoint_every_frames=10**9, eval_episodes=1)
                _assign(config.run, log_every_frames=log_every)
                _assign(config.algo, **algo)
                config.env.validate()
            with contextlib.redirect_stderr(io.StringIO()):
                train_seeds(recipe.train, configs)
            rows = [json.loads(line) for line in (Path(folder) / "0/metrics.jsonl").read_text().splitlines()]
        first = configs[0].algo.learning_starts_frames + log_every
        rates = [row["fps"] for row in rows if row["event"] == "train" and row["frames"] > first]
        return seeds * statistics.median(rates) / per_step

    return measure


def _assign(settings: Any, **values: Any) -> None:
    for name, value in values.items():
        assert hasattr(settings, name), name
        setattr(settings, name, value)


def recipe_module(name: str) -> ModuleType:
    """The recipe ``name``, from the folder beside the package.

    Raises:
        AnalysisError: an installation without ``recipes/``, which comes with the source.
    """
    path = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise AnalysisError(f"bench needs recipes/{name}.py, which comes with the source, got an installation without.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their types up there
    spec.loader.exec_module(module)
    return module
