"""Planned and failed runs of a sweep, read from its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torchrl_reg.lab.analysis.find import folders
from torchrl_reg.lab.documents import open_file, read_json
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import printable
from torchrl_reg.lab.run.folder import last_line

_LAUNCHES = "jobs.jsonl"
#: Levels of a run's folder below its sweep's.
_DEPTH = 4


def not_begun(root: Path) -> list[Path]:
    """Folders at or below ``root`` of runs in a sweep's ``jobs.jsonl`` without a ``config.yaml``, sorted.

    ``root`` may be the folder of a sweep, a folder of sweeps, or a folder within a sweep.
    """
    absolute = Path(os.path.abspath(root))
    below = [path.parent for path in absolute.glob(f"*/{_LAUNCHES}")]
    found = {
        root / run.relative_to(absolute)
        for sweep in (absolute, *below, *list(absolute.parents)[:_DEPTH])
        for run in _listed(sweep)
        if run.is_relative_to(absolute)
    }
    return sorted(run for run in found if not (run / "config.yaml").exists())


def _listed(sweep: Path) -> Iterator[Path]:
    try:
        with open_file(sweep / _LAUNCHES) as file:
            lines = file.read().decode().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            elements = json.loads(line)["elements"]
            yield from [sweep / str(run) for element in elements for run in element]
        except (ValueError, KeyError, TypeError):
            continue  # an incomplete row, left by a crash


def _marks(run: Path) -> list[Path]:
    """The failure marks of a run, that of its array element first."""
    return [mark for mark in (run.with_name(f"{run.name}.failed"), run / "failed.json") if mark.exists()]


def failure(run: Path) -> dict[str, str] | None:
    """``returncode``, ``ended_at`` and ``last_line`` of a failed run, safe to print; None for other runs."""
    facts: dict[str, object] = {}
    found = _marks(run)
    for mark in reversed(found):
        with suppress(UserError):  # an incomplete file
            facts |= read_json(mark) or {}
    if not found:
        return None
    facts["last_line"] = facts.get("last_line") or last_line(run.with_name(f"{run.name}.log"))
    names = ("returncode", "ended_at", "last_line")
    return {name: "" if facts.get(name) is None else printable(str(facts[name])) for name in names}


def marked(root: Path) -> set[Path]:
    """Runs at or below ``root`` with a failure mark, with or without a folder."""
    found: set[Path] = set()
    for folder, _, files in folders(root):
        found |= {folder / name.removesuffix(".failed") for name in files if name.endswith(".failed")}
        found |= {folder} if "failed.json" in files else set()
    return found
