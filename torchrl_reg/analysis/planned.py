"""The runs a sweep was launched with, whether they have begun or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

_LAUNCHES = "jobs.jsonl"
#: Folders between a sweep's and a run's: ``recipe/env/settings``.
_DEPTH = 4


def planned_runs(root: Path) -> list[Path]:
    """Folders at or below ``root`` of every run that a launch of its sweep listed in ``jobs.jsonl``, sorted.

    ``root`` may be the sweep's folder, one that holds several, or one within a sweep.
    """
    absolute = Path(os.path.abspath(root))
    below = [path.parent for path in absolute.glob(f"*/{_LAUNCHES}")]
    found = {
        root / run.relative_to(absolute)
        for sweep in (absolute, *below, *list(absolute.parents)[:_DEPTH])
        for run in _listed(sweep)
        if run.is_relative_to(absolute)
    }
    return sorted(found)


def not_begun(root: Path) -> list[Path]:
    """Of :func:`planned_runs` those that have no ``config.yaml`` yet."""
    return [run for run in planned_runs(root) if not (run / "config.yaml").exists()]


def _listed(sweep: Path) -> Iterator[Path]:
    try:
        lines = (sweep / _LAUNCHES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            elements = json.loads(line)["elements"]
            yield from [sweep / str(run) for element in elements for run in element]
        except (ValueError, KeyError, TypeError):
            continue  # a row that a crash cut short
