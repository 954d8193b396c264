"""Validates the settings of a sweep against its recipes before submission: a typo costs seconds, not a night."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from slurm.snapshot import ROOT, recipe_source
from slurm.sweep import PlannedRun, SweepError, flat


def composed(runs: Iterable[PlannedRun]) -> dict[str, dict[str, Any]]:
    """The flattened config of each run, by run folder; recipes that cannot print theirs are left out.

    Raises:
        SweepError: a recipe refuses a run, in its own sentence.
    """
    by_recipe: dict[str, list[PlannedRun]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    found: dict[str, dict[str, Any]] = {}
    for recipe, planned in by_recipe.items():
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(recipe_source(recipe)), "--check"],
            input=json.dumps([run.overrides for run in planned]),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))},
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise SweepError(f"sweep does not fit {recipe}: {last}")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if len(lines) == len(planned):
            found |= {run.folder: flat(json.loads(line)) for run, line in zip(planned, lines, strict=True)}
    return found


def covering(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Of every recipe the runs that bring an override none before them had."""
    seen: dict[str, set[str]] = {}
    chosen: list[PlannedRun] = []
    for run in runs:
        new = {text for text in run.overrides if not text.startswith("run.seed=")}
        if run.recipe not in seen or new - seen[run.recipe]:
            chosen.append(run)
            seen.setdefault(run.recipe, set()).update(new)
    return chosen
