"""Why a run failed: the mark beside it (``seed=0.failed``, of its array element), its own ``failed.json``, its log."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from torchrl_reg.analysis.documents import read_json
from torchrl_reg.analysis.errors import AnalysisError


def marks(run: Path) -> list[Path]:
    """The marks of a failure that are there, the element's first."""
    return [mark for mark in (run.with_name(f"{run.name}.failed"), run / "failed.json") if mark.exists()]


def failure(run: Path) -> dict[str, str] | None:
    """``returncode``, ``ended_at`` and ``last_line`` of a run that failed, safe to print; None for one that did not."""
    said: dict[str, Any] = {}
    found = marks(run)
    for mark in reversed(found):
        try:
            said |= read_json(mark) or {}
        except AnalysisError:
            continue  # half written
    if not found:
        return None
    said["last_line"] = said.get("last_line") or last_line(run.with_name(f"{run.name}.log"))
    names = ("returncode", "ended_at", "last_line")
    return {name: "" if said.get(name) is None else printable(str(said[name])) for name in names}


def last_line(log: Path) -> str:
    """The last line of a log that says anything, safe to print."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    return printable(next((line for line in reversed(lines) if line), ""))


def printable(text: str) -> str:
    """``text`` without what would command a terminal: colours are taken out, other control codes are shown.

    >>> printable("\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07 \\x9b2J")
    'red \\\\x1b]0;title\\\\x07 \\\\x9b2J'
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
