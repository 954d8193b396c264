"""The runs in some folders while they run: state, frames, speed, returns; cheap to bring up to date."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.analysis.failures import failure, marks
from torchrl_reg.analysis.groups import group_runs
from torchrl_reg.analysis.mean_curve import mean_curve
from torchrl_reg.analysis.planned import not_begun
from torchrl_reg.analysis.record import Columns, Row, Tail, is_number
from torchrl_reg.analysis.runs import RunRecord, read_run, run_folders

State = Literal["done", "running", "silent", "failed", "waiting"]
#: A run that wrote no row for this long, and for several times its usual pace, is called silent.
SILENT_SECONDS = 300.0
_SILENT_ROWS = 4


class WatchedRun:
    """One run folder and the rows read from it so far."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.fps: float | None = None
        self._tail = Tail(record.path / "metrics.jsonl")
        self._forget()

    def _forget(self) -> None:
        self.fps, self._wall, self._row_seconds = None, 0.0, 0.0
        self._columns = Columns()

    def refresh(self) -> None:
        """Reads what was written since the last look, in chunks."""
        rows: list[Row] = [{}]
        while rows:
            rows, cut = self._tail.read()
            if cut:
                self._forget()
            self._columns.extend(map(self._shown, rows))

    @property
    def frames(self) -> int:
        """Environment frames of the last row."""
        return self._columns.frames

    @property
    def problem(self) -> str | None:
        """What is no row in the record, in words."""
        return self._tail.problem

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """Frames and returns of the evaluations."""
        return self._points("eval")

    @property
    def training(self) -> list[tuple[int, float]]:
        """Frames and returns of the training rows that saw an episode end; neighbours are averaged in long runs."""
        return self._points("train")

    def _points(self, event: str) -> list[tuple[int, float]]:
        frames, values = self._columns.of(event, "return")
        there = ~np.isnan(values)
        return list(zip(frames[there].tolist(), values[there].tolist(), strict=True))

    @property
    def total_frames(self) -> int | None:
        """``algo.total_frames``; None where a recipe has none."""
        total = self.record.config.get("algo.total_frames")
        return int(total) if isinstance(total, int | float) else None

    @property
    def remaining_seconds(self) -> float | None:
        """Until the last frame at the latest speed; None if unknown."""
        if self.total_frames is None or not self.fps:
            return None
        return max(self.total_frames - self.frames, 0) / self.fps

    @property
    def share(self) -> float:
        """Of the frames done, in [0, 1]."""
        if self.state() == "done":
            return 1.0
        return min(self.frames / self.total_frames, 1.0) if self.total_frames else 0.0

    def state(self, now: float | None = None) -> State:
        """``done``, ``failed``, ``waiting`` (no row yet), ``silent`` (no row for long) or ``running``."""
        path = self.record.path
        if (path / "done.json").exists():
            return "done"
        if marks(path):
            return "failed"
        try:
            written = (path / "metrics.jsonl").stat().st_mtime
        except OSError:
            return "waiting"
        quiet = (time.time() if now is None else now) - written
        return "silent" if quiet > max(SILENT_SECONDS, _SILENT_ROWS * self._row_seconds) else "running"

    def _shown(self, row: Row) -> Row:
        """Of ``row`` its return; notes its speed on the way."""
        name = "return_mean"
        if row["event"] == "eval":
            name = next((n for n in row if n.startswith("return_") and n.endswith("_mean")), "")
        elif is_number(wall := row.get("wall_seconds")):
            self._row_seconds, self._wall = max(wall - self._wall, 0.0), wall
            self.fps = row["fps"] if is_number(row.get("fps")) else self.fps
        return {"event": row["event"], "frames": row["frames"], "return": row.get(name)}


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

    def curve(self, event: Literal["eval", "train"]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frames and the mean return over the runs that reach each of them."""
        points = [run.evaluations if event == "eval" else run.training for run in self.runs]
        return mean_curve([each for each in points if each])

    def latest(self, event: Literal["eval", "train"]) -> float | None:
        """The mean return at the last frame that every run with a return has reached; None before the first of one."""
        points = [run.evaluations if event == "eval" else run.training for run in self.runs]
        points = [each for each in points if each]
        common = min((each[-1][0] for each in points), default=0)
        if not points or common < max(each[0][0] for each in points):
            return None
        return float(np.mean([np.interp(common, *np.array(each, dtype=np.float64).T) for each in points]))


@dataclass
class Watcher:
    """All runs at or below ``folders``; runs may appear and vanish between two looks."""

    folders: Sequence[Path]
    runs: dict[Path, WatchedRun] = field(default_factory=dict)
    unreadable: dict[Path, str] = field(default_factory=dict)
    not_begun: dict[Path, State] = field(default_factory=dict)
    _grouped: dict[bool, list[WatchedGroup]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Looks for new runs and reads new rows; configs are read once."""
        found = [folder for root in self.folders for folder in run_folders(root)]
        there = set(found)
        if there != set(self.runs):
            self._grouped.clear()
        self.runs = {path: run for path, run in self.runs.items() if path in there}
        planned = {path for root in self.folders for path in not_begun(root)} - there
        states: dict[Path, State] = {path: "failed" if marks(path) else "waiting" for path in sorted(planned)}
        if states != self.not_begun:
            self._grouped.clear()
            self.not_begun = states
        self.unreadable = {}
        for path in found:
            # A run writes its command a moment after its config.
            begun = path in self.runs and self.runs[path].record.recipe != "unknown"
            if not begun:
                try:
                    record = read_run(path)
                    if path not in self.runs:
                        self.runs[path] = WatchedRun(record)
                    elif record.recipe != "unknown":
                        self.runs[path].record = record
                        self._grouped.clear()
                except (AnalysisError, OSError) as error:
                    self.unreadable[path] = str(error)
        for path, run in self.runs.items():
            run.refresh()
            if run.problem is not None:
                self.unreadable[path] = f"metrics.jsonl holds what is no row: {run.problem}"

    def failures(self) -> dict[Path, str]:
        """The last words of the runs that failed."""
        failed = [path for path, run in self.runs.items() if run.state() == "failed"]
        failed += [path for path, state in self.not_begun.items() if state == "failed"]
        return {path: (failure(path) or {}).get("last_line", "") for path in failed}

    def shown_path(self, path: Path) -> str:
        """A run's folder, relative to that which was asked for."""
        root = next((root for root in self.folders if path != root and path.is_relative_to(root)), path.parent)
        return str(path.relative_to(root))

    def groups(self, *, single: bool = False) -> list[WatchedGroup]:
        """One group a method and environment, or one a run where ``single`` or where methods cannot be told apart."""
        if single not in self._grouped:  # comparing hundreds of configs takes half a second
            self._grouped[single] = self._groups(single=single)
        return self._grouped[single]

    def _groups(self, *, single: bool) -> list[WatchedGroup]:
        runs = {id(run.record): run for run in self.runs.values()}
        if not single:
            try:
                groups = group_runs(run.record for run in self.runs.values())
            except AnalysisError:
                pass
            else:
                return [
                    WatchedGroup(g.method, g.env, tuple(runs[id(r)] for r in g.runs), self._beside(g.runs))
                    for g in groups
                ]
        ordered = sorted(self.runs.values(), key=lambda run: (run.record.env, run.record.path))
        return [WatchedGroup(self.shown_path(run.record.path), run.record.env, (run,)) for run in ordered]

    @property
    def total_frames(self) -> int:
        """Of all runs; one that has not begun counts as the mean of those beside it, else of all."""
        totals = {path: run.total_frames or run.frames for path, run in self.runs.items()}
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


def latest_curves(
    groups: Iterable[WatchedGroup],
) -> tuple[Literal["eval", "train"], list[tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """What to draw for the groups of one environment, and of what: evaluations once all have two, else training."""
    groups = list(groups)
    evaluated = [group.curve("eval") for group in groups]
    if all(len(frames) > 1 for frames, _ in evaluated):
        return "eval", evaluated
    return "train", [group.curve("train") for group in groups]
