"""The configs of a sweep's runs, composed by their recipes before anything is submitted.

This finds a typo before the runs do, and settings in which the arms differ by mistake. Arms are the runs on one
environment, seeds aside. A setting counts as named if it, or the group it comes with (``policy``), is in the sweep's
grid or variants. Naming a preset (``+paper``) does not name the settings it changes, but ``+method`` names its slots.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slurm.snapshot import ROOT, recipe_source
from slurm.sweep import PlannedRun, flat
from torchrl_reg.lab.errors import UserError

_IGNORED = frozenset({"run.seed", "run.dir"})
_SLOTS = frozenset({"method", "regularizer", "shaping", "head"})
_MAX_ARMS = 4


@dataclass(frozen=True)
class Difference:
    """A setting with several values: ``arms`` by value, without those that lack the setting."""

    setting: str
    arms: dict[str, list[str]]
    named: bool


def composed(runs: Iterable[PlannedRun]) -> dict[str, dict[str, Any]]:
    """The flat config of each run, by run folder; without recipes that do not print theirs.

    Raises:
        UserError: a recipe refuses a run; the message is its own.
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
            raise UserError(f"sweep does not fit {recipe}: {last}")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if len(lines) == len(planned):
            found |= {run.folder: flat(json.loads(line)) for run, line in zip(planned, lines, strict=True)}
    return found


def covering(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """The runs of every recipe that have an override no earlier run of it has."""
    seen: dict[str, set[str]] = {}
    chosen: list[PlannedRun] = []
    for run in runs:
        new = {text for text in run.overrides if not text.startswith("run.seed=")}
        if run.recipe not in seen or new - seen[run.recipe]:
            chosen.append(run)
            seen.setdefault(run.recipe, set()).update(new)
    return chosen


def compared_runs(runs: Iterable[PlannedRun]) -> dict[str, list[PlannedRun]]:
    """One run an arm, by family of environments: a preset is for a family (``mujoco``), not for one of its games."""
    chosen: dict[str, dict[str, PlannedRun]] = {}
    first: dict[str, str] = {}
    for run in runs:
        env = next((text[4:] for text in run.overrides if text.startswith("env=")), "its default environment")
        family = env.partition("/")[0]
        if first.setdefault(family, env) == env:
            chosen.setdefault(family, {}).setdefault(run.arm, run)
    return {family: list(arms.values()) for family, arms in chosen.items()}


def differences(configs: Mapping[str, Mapping[str, Any]], named: Collection[str]) -> list[Difference]:
    """Settings that at least two arms have, with different values.

    Args:
        configs: the whole composed config of each arm, flat.
        named: settings of the sweep's grid and variants.

    >>> differences({"a": {"x": 1, "y": 2}, "b": {"x": 3}, "c": {"x": 3}}, named=[])
    [Difference(setting='x', arms={'1': ['a'], '3': ['b', 'c']}, named=False)]
    """
    names = dict.fromkeys(name for config in configs.values() for name in config if name not in _IGNORED)
    found = []
    for name in names:
        arms: dict[str, list[str]] = {}
        for arm, config in configs.items():
            if name in config:
                arms.setdefault(str(config[name]), []).append(arm)
        if len(arms) > 1:
            group = name.partition(".")[0]
            by_method = "+method" in named and group in _SLOTS
            found.append(Difference(name, arms, by_method or bool({name, f"+{name}", group} & set(named))))
    return found


def table(found: Iterable[Difference], family: str, number: int) -> str:
    """The table of ``dry=true``; ``!`` marks settings that the sweep's file does not name."""
    found = sorted(found, key=lambda difference: difference.named)
    if not found:
        return f"settings in which the {number} arms differ on {family}: none"
    width = max(len(difference.setting) for difference in found)
    lines = [f"settings in which the {number} arms differ on {family} (! not named in the sweep):"]
    for difference in found:
        values = "; ".join(f"{value} ({_shortened(arms)})" for value, arms in difference.arms.items())
        if difference.named:
            values = ", ".join(difference.arms)
        lines.append(f"{' ' if difference.named else '!'} {difference.setting:{width}}  {values}")
    return "\n".join(lines)


def _shortened(arms: list[str]) -> str:
    more = f", {len(arms) - _MAX_ARMS} more" if len(arms) > _MAX_ARMS else ""
    return ", ".join(arms[:_MAX_ARMS]) + more
