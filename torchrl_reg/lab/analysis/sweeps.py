"""Sweeps from their files: planned runs, failure marks, progress."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from torchrl_reg.lab.analysis.curves import Curve, mean_curve
from torchrl_reg.lab.analysis.documents import AnalysisError, opened, read_json
from torchrl_reg.lab.analysis.groups import group_runs
from torchrl_reg.lab.analysis.runs import (
    Column,
    Columns,
    Row,
    RunRecord,
    Tail,
    finite,
    folders,
    is_number,
    read_run,
    run_folders,
)
from torchrl_reg.lab.printable import printable
from torchrl_reg.lab.run.folder import is_done, last_line

_LAUNCHES = "jobs.jsonl"
#: Folders between a sweep's and a run's: ``recipe/env/settings``.
_DEPTH = 4


def not_begun(root: Path) -> list[Path]:
    """Folders at or below ``root`` of runs listed in a sweep's ``jobs.jsonl`` that have no ``config.yaml`` yet, sorted.

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
    return sorted(run for run in found if not (run / "config.yaml").exists())


def _listed(sweep: Path) -> Iterator[Path]:
    try:
        with opened(sweep / _LAUNCHES) as file:
            lines = file.read().decode().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            elements = json.loads(line)["elements"]
            yield from [sweep / str(run) for element in elements for run in element]
        except (ValueError, KeyError, TypeError):
            continue  # a row that a crash cut short


def marks(run: Path) -> list[Path]:
    """The failure marks of a run, its array element's first."""
    return [mark for mark in (run.with_name(f"{run.name}.failed"), run / "failed.json") if mark.exists()]


def failure(run: Path) -> dict[str, str] | None:
    """``returncode``, ``ended_at`` and ``last_line`` of a run that failed, safe to print; None for one that did not."""
    said: dict[str, Any] = {}
    found = marks(run)
    for mark in reversed(found):
        with suppress(AnalysisError):  # half written
            said |= read_json(mark) or {}
    if not found:
        return None
    said["last_line"] = said.get("last_line") or last_line(run.with_name(f"{run.name}.log"))
    names = ("returncode", "ended_at", "last_line")
    return {name: "" if said.get(name) is None else printable(str(said[name])) for name in names}


def marked(root: Path) -> set[Path]:
    """Runs at or below ``root`` with a mark of a failure, whether they have a folder or not."""
    found: set[Path] = set()
    for folder, _, files in folders(root):
        found |= {folder / name.removesuffix(".failed") for name in files if name.endswith(".failed")}
        found |= {folder} if "failed.json" in files else set()
    return found


Event = Literal["eval", "train"]
State = Literal["done", "running", "silent", "failed", "waiting"]
#: A run that wrote no row for this long, and for several times its usual pace, is called silent.
SILENT_SECONDS = 300.0
_SILENT_ROWS = 4


class WatchedRun:
    """One run folder and the rows read from it so far, by its ``tail``."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.fps: float | None
        self.tail = Tail(record.path / "metrics.jsonl")
        self._forget()

    def _forget(self) -> None:
        self.fps, self._wall, self._row_seconds = None, 0.0, 0.0
        self._columns = Columns()

    def refresh(self) -> None:
        """Reads the rows written since the last refresh, in chunks."""
        rows: list[Row] = [{}]
        while rows:
            rows, cut = self.tail.read()
            if cut:
                self._forget()
            self._columns.extend(map(self._shown, rows))

    @property
    def frames(self) -> int:
        """Environment frames of the last row."""
        return self._columns.frames

    def returns(self, event: Event) -> Column:
        """Frames and returns of the evaluations, or of the training rows that saw an episode end."""
        return finite(self._columns.of(event, "return"))

    @property
    def diverged_frames(self) -> int | None:
        """The frame at which values were first seen beyond what rewards allow; None if they never were."""
        return next(map(int, finite(self._columns.of("train", "diverged_frames"))[1]), None)

    @property
    def remaining_seconds(self) -> float | None:
        """Until the last frame at the latest speed; None if unknown."""
        total = self.record.total_frames
        return max(total - self.frames, 0) / self.fps if total is not None and self.fps else None

    @property
    def share(self) -> float:
        """Of the frames done, in [0, 1]."""
        total = self.record.total_frames
        return 1.0 if self.state() == "done" else min(self.frames / total, 1.0) if total else 0.0

    def state(self) -> State:
        """``done``, ``failed``, ``waiting`` (no row yet), ``silent`` (no row for long) or ``running``."""
        path = self.record.path
        if is_done(path):
            return "done"
        if marks(path):
            return "failed"
        try:
            written = (path / "metrics.jsonl").stat().st_mtime
        except OSError:
            return "waiting"
        quiet = time.time() - written
        return "silent" if quiet > max(SILENT_SECONDS, _SILENT_ROWS * self._row_seconds) else "running"

    def _shown(self, row: Row) -> Row:
        """The return in ``row``; also updates the speed."""
        name = "return_mean"
        if row["event"] == "eval":
            name = next((n for n in row if n.startswith("return_") and n.endswith("_mean")), "")
        elif is_number(wall := row.get("wall_seconds")):
            self._row_seconds, self._wall = max(wall - self._wall, 0.0), wall
            self.fps = row["fps"] if is_number(row.get("fps")) else self.fps
        diverged = row.get("diverged_frames")
        return {"event": row["event"], "frames": row["frames"], "return": row.get(name), "diverged_frames": diverged}


@dataclass(frozen=True)
class WatchedGroup:
    """Runs shown as one line: the seeds of a method, or one run.

    Args:
        name, env: what they are.
        runs: those that have begun.
        not_begun: states of the planned seeds beside them that have no folder yet.
    """

    name: str
    env: str
    runs: tuple[WatchedRun, ...]
    not_begun: tuple[State, ...] = ()

    def curve(self, event: Event) -> Curve:
        """Frames and the mean return over the runs that reach each of them."""
        return mean_curve(self._returns(event))

    def latest(self, event: Event) -> float | None:
        """The mean return at the last frame that every run with a return has reached; None before the first of one."""
        found = self._returns(event)
        common = min((frames[-1] for frames, _ in found), default=0)
        if not found or common < max(frames[0] for frames, _ in found):
            return None
        return float(np.mean([np.interp(common, *each) for each in found]))

    def _returns(self, event: Event) -> list[Column]:
        return [found for run in self.runs if len((found := run.returns(event))[0])]


@dataclass
class Watcher:
    """All runs at or below ``folders``; runs may appear and vanish between two refreshes."""

    folders: Sequence[Path]
    runs: dict[Path, WatchedRun] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    not_begun: dict[Path, State] = field(default_factory=dict)
    _grouped: list[WatchedGroup] = field(default_factory=list)
    _grouped_of: Any = None

    def refresh(self) -> None:
        """Finds new runs and reads new rows; each config is read once."""
        there, known = [path for root in self.folders for path in run_folders(root)], self.runs
        self.runs, self.unreadable = {}, {}
        for path in there:
            run = known.get(path)
            if run is None or run.record.recipe == "unknown":  # a run writes its command a moment after its config
                try:
                    record = read_run(path)
                except (AnalysisError, OSError) as error:
                    self.unreadable[path] = str(error)
                    continue
                run = run or WatchedRun(record)
                run.record = record
            run.refresh()
            self.runs[path] = run
            if run.tail.problem is not None:
                self.unreadable[path] = f"metrics.jsonl must hold one JSON object a line, got {run.tail.problem}"
        planned = {path for root in self.folders for path in not_begun(root)} - set(there)
        self.not_begun = {path: "failed" if marks(path) else "waiting" for path in sorted(planned)}

    def failures(self) -> dict[Path, str]:
        """The last log line of each failed run."""
        failed = [path for path, run in self.runs.items() if run.state() == "failed"]
        failed += [path for path, state in self.not_begun.items() if state == "failed"]
        return {path: (failure(path) or {}).get("last_line", "") for path in failed}

    def shown_path(self, path: Path) -> str:
        """A run's folder, relative to the folder being watched, safe to print."""
        root = next((root for root in self.folders if path != root and path.is_relative_to(root)), path.parent)
        return printable(str(path.relative_to(root)))

    def groups(self, *, single: bool = False) -> list[WatchedGroup]:
        """One group per method and environment; one per run if ``single`` or if methods cannot be told apart."""
        asked = single, [run.record for run in self.runs.values()], self.not_begun
        if asked != self._grouped_of:  # naming the methods of hundreds of runs takes half a second
            self._grouped_of, self._grouped = asked, self._groups(single=single)
        return self._grouped

    def _groups(self, *, single: bool) -> list[WatchedGroup]:
        with suppress(AnalysisError):
            if not single:
                return [
                    WatchedGroup(g.method, g.env, tuple(self.runs[r.path] for r in g.runs), self._beside(g.runs))
                    for g in group_runs(run.record for run in self.runs.values())
                ]
        ordered = sorted(self.runs.values(), key=lambda run: (run.record.env, run.record.path))
        return [WatchedGroup(self.shown_path(run.record.path), run.record.env, (run,)) for run in ordered]

    @property
    def total_frames(self) -> int:
        """Of all runs; one that has not begun counts as the mean of those beside it, else of all."""
        totals = {path: run.record.total_frames or run.frames for path, run in self.runs.items()}
        if not totals:
            return 0
        beside: dict[Path, list[int]] = {}
        for path, total in totals.items():
            beside.setdefault(path.parent, []).append(total)
        every = list(totals.values())
        expected = [beside.get(path.parent, every) for path in self.not_begun]
        return sum(every) + round(sum(sum(each) / len(each) for each in expected))

    def _beside(self, runs: Iterable[RunRecord]) -> tuple[State, ...]:
        parents = {run.path.parent for run in runs}
        return tuple(state for path, state in self.not_begun.items() if path.parent in parents)


def latest_curves(groups: Sequence[WatchedGroup]) -> tuple[Event, list[Curve]]:
    """What to draw for the groups of one environment, and of what: evaluations once all have two, else training."""
    evaluated = [group.curve("eval") for group in groups]
    if all(len(frames) > 1 for frames, _ in evaluated):
        return "eval", evaluated
    return "train", [group.curve("train") for group in groups]
