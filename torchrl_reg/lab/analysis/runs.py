"""Reads the folder of a finished or unfinished run, in bounded memory."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.lab.documents import flat, open_file, read_json, read_text, read_yaml
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import printable
from torchrl_reg.lab.run.folder import with_targets
from torchrl_reg.lab.run.settings import WITHOUT_EFFECT

#: Environment frames and values, NaN for null.
Column = tuple[NDArray[np.int64], NDArray[np.float64]]
Row = dict[str, Any]
NO_POINTS: Column = (np.zeros(0, np.int64), np.zeros(0))

#: Limits of an undamaged record: bytes of a row, and columns of an event.
_MAX_ROW_BYTES, _MAX_COLUMNS = 1 << 20, 1000
#: Maximum number of points of a training column; longer ones are averaged.
MAX_CURVE_POINTS = 2000
#: Columns that are cumulative or means already: merged rows take the last value, not the mean.
_LAST = frozenset({"updates", "wall_seconds", "return_last_100"})
#: Rows merged at once; a power of two, so that buckets hold equal numbers of rows.
_ROWS_PER_FOLD = 1024


def metrics_rows(folder: Path, containing: str = "") -> Iterator[Row]:
    """Rows of ``metrics.jsonl`` in ``folder`` whose lines contain ``containing``; none if there is no file.

    An incomplete last line and rows without an event or frames are left out. Numbers that are not finite are None, as
    training writes them.

    Raises:
        UserError: a line is not a JSON object.
    """
    path, wanted = folder / "metrics.jsonl", containing.encode()
    try:
        with open_file(path) as file:
            for number, line in enumerate(iter(partial(file.readline, _MAX_ROW_BYTES + 1), b""), 1):
                if len(line) > _MAX_ROW_BYTES:
                    raise _damaged(path, f"a row longer than {_MAX_ROW_BYTES} bytes in line {number}")
                if not line.endswith(b"\n") or wanted not in line:
                    continue
                if (row := _json_object(line)) is None:
                    shown = line.removesuffix(b"\n")[:40].decode(errors="replace")
                    raise _damaged(path, f"{shown!r} in line {number}")
                if _is_row(row):
                    yield row
    except FileNotFoundError:
        return
    except OSError as error:
        raise _damaged(path, error.strerror) from None


def last_rows(folder: Path, size: int) -> list[Row]:
    """Rows in the last ``size`` bytes of ``metrics.jsonl`` in ``folder``; other lines are left out."""
    try:
        with open_file(folder / "metrics.jsonl") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            lines = file.read(size).split(b"\n")[:-1]
    except OSError:
        return []
    found = (_json_object(line) for line in lines[start > 0 :])  # the first line may be incomplete
    return [row for row in found if row is not None and _is_row(row)]


def _damaged(path: Path, problem: str | None) -> UserError:
    return UserError(f"{path} must hold one JSON object a line, got {problem}.")


def _json_object(line: bytes) -> Row | None:
    try:
        # Numbers that are not finite are None, as training writes them.
        found = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_row(row: Row) -> bool:
    frames = row.get("frames")
    there = isinstance(frames, int) and not isinstance(frames, bool) and 0 <= frames < 1 << 62
    return there and isinstance(row.get("event"), str)


def read_columns(rows: Iterable[Row]) -> dict[str, dict[str, Column]]:
    """The columns of the rows of each event; columns with equal frames share one array of them.

    Evaluations are kept. Other columns have up to ``MAX_CURVE_POINTS`` points, each the mean of consecutive rows at
    the frames of the last one, as if the run had written fewer rows.

    Raises:
        UserError: too many columns.
    """
    events: dict[str, dict[str, _Points]] = {}
    for row in rows:
        event, frames = row["event"], row["frames"]
        columns = events.setdefault(event, {})
        for name, value in row.items():
            if value is None or is_number(value):
                if (points := columns.get(name)) is None:
                    if len(columns) >= _MAX_COLUMNS:
                        raise UserError(f"metrics.jsonl must have at most {_MAX_COLUMNS} columns, got more.")
                    points = columns[name] = _Points(None if event == "eval" else MAX_CURVE_POINTS, name in _LAST)
                points.frames.append(frames)
                points.values.append(value)
                if len(points.frames) == _ROWS_PER_FOLD:
                    points.fold()
    shared: dict[bytes, NDArray[np.int64]] = {}

    def arrays(points: _Points) -> Column:
        frames, values = points.arrays()
        return shared.setdefault(frames.tobytes(), frames), values

    return {event: {name: arrays(points) for name, points in columns.items()} for event, columns in events.items()}


class _Points:
    """A column in up to ``limit`` buckets of ``every`` rows each (frames of the last, sum, count), and new rows."""

    def __init__(self, limit: int | None, last: bool) -> None:
        self.frames: list[int] = []
        self.values: list[float | None] = []
        self._limit, self._last, self._every = limit, last, 1
        self._buckets: list[NDArray[Any]] = [np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)]

    def fold(self) -> None:
        """Moves the new rows into buckets."""
        self._buckets, self._every = self._folded()
        self.frames, self.values = [], []

    def arrays(self) -> Column:
        (frames, sums, counts), _ = self._folded()
        return frames, np.where(counts > 0, sums, np.nan) / np.maximum(counts, 1)

    def _folded(self) -> tuple[list[NDArray[Any]], int]:
        # NaN for null and for integers too large for a float.
        numbers = [math.nan if value is None or abs(value) > 1e308 else value for value in self.values]
        values = np.array(numbers, np.float64)
        there = np.isfinite(values)
        rows = [np.array(self.frames, np.int64), np.where(there, values, 0.0), there.astype(np.int64)]
        new = self._grouped(rows, self._every)
        found, every = [np.concatenate(pair) for pair in zip(self._buckets, new, strict=True)], self._every
        while self._limit is not None and len(found[0]) > self._limit:
            found, every = self._grouped(found, 2), 2 * every
        return found, every

    def _grouped(self, rows: list[NDArray[Any]], size: int) -> list[NDArray[Any]]:
        starts = np.arange(0, len(rows[0]), size)
        if size == 1 or not len(starts):
            return rows
        ends = np.minimum(starts + size, len(rows[0])) - 1
        sums = [each[ends] if self._last else np.add.reduceat(each, starts) for each in rows[1:]]
        return [rows[0][ends], *sums]


def is_number(value: object) -> TypeGuard[float]:
    """True for an int or a float, False for a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(column: Column) -> Column:
    """The points of ``column`` that are not NaN."""
    frames, values = column
    there = ~np.isnan(values)
    return frames[there], values[there]


#: Left out of a run's settings. Each of several seeds has ``run.seeds=null``, which digests of saved rows contain.
_NOT_SETTINGS = WITHOUT_EFFECT - {"run.seeds"} | {"run.seed"}
#: Returns that are read from training rows.
TRAINING_RETURNS = ("return_last_100", "return_mean")


@dataclass(frozen=True)
class RunRecord:
    """A run folder.

    Args:
        path: the folder.
        recipe: the setting ``method`` (``"dqn"``), or else the stem of the script in ``command.txt`` (``"m_dqn"``), or
            else ``"unknown"``.
        env: name and game, ``"cartpole"`` or ``"atari/Pong"``.
        seed: ``run.seed``.
        config: settings that affect the results, flat (``{"algo.tau": 0.03, ...}``), without the seed.
        starts: the starts in ``provenance.json``: commit, versions, host, device, SLURM ids.
        done: ``done.json``; None if the run is not finished.
        command: ``command.txt``.
        script: path of the recipe, which distinguishes recipes of one stem: ``recipes/m_dqn.py`` in any checkout.
    """

    path: Path
    recipe: str
    env: str
    seed: int
    config: dict[str, Any]
    starts: tuple[dict[str, Any], ...]
    done: dict[str, Any] | None
    command: str
    script: str = ""

    @property
    def total_frames(self) -> int | None:
        """``algo.total_frames``; None if the recipe has no such setting."""
        total = self.config.get("algo.total_frames")
        return int(total) if is_number(total) and math.isfinite(total) else None

    @property
    def commits(self) -> tuple[str, ...]:
        """The distinct commits of the starts, in order; outside git the version of the package."""
        return tuple(dict.fromkeys(commit for _, commit in self._commits()))

    @property
    def short_commits(self) -> tuple[str, ...]:
        """The commits, shortened to seven digits; ``+`` marks uncommitted changes."""
        names = [commit[:7] + "+" * bool(s.get("uncommitted_changes")) for s, commit in self._commits()]
        return tuple(dict.fromkeys(names))

    def _commits(self) -> list[tuple[dict[str, Any], str]]:
        return [(start, printable(_code_of(start))) for start in self.starts]

    def evaluations(self, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Environment frames ``[E]`` and values ``[E]`` of ``column`` in the evaluation rows, without ``null``.

        Read from the training rows if evaluations have no such column, and for ``TRAINING_RETURNS``.
        """
        return finite(self._scored(column))

    def evaluated_frames(self, column: str = "return_greedy_mean") -> NDArray[np.int64]:
        """Environment frames of the evaluation rows with ``column``, ``null`` included."""
        return self._scored(column)[0]

    def last_evaluation(self, column: str = "return_greedy_mean") -> int:
        """Environment frames of the last evaluation; 0 without any."""
        return int(self.evaluations(column)[0][-1:].sum())

    def ends_without(self, column: str = "return_greedy_mean") -> bool:
        """True if ``column`` is ``null`` in the last evaluation row that has it, as for a return that is not finite."""
        _, values = self._scored(column)
        return bool(np.isnan(values[-1:]).any())

    def training(self, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As :meth:`evaluations`, for training rows; more than 2000 rows are averaged."""
        return finite(self._columns("train").get(column, NO_POINTS))

    def names(self, event: str) -> list[str]:
        """Columns with numbers or ``null`` in the rows of ``event`` (``eval``, ``train``)."""
        return [name for name in self._columns(event) if name not in ("event", "frames")]

    def _scored(self, column: str) -> Column:
        evaluated = () if column in TRAINING_RETURNS else self._columns("eval")
        return self._columns("eval" if column in evaluated else "train").get(column, NO_POINTS)

    @property
    def diverged_frames(self) -> int | None:
        """The frames at which values first exceeded the bound set by rewards; None if they did not."""
        found = self.training("diverged_frames")[1] if self.done is None else [self.done.get("diverged_frames")]
        return next((int(frames) for frames in found if is_number(frames) and math.isfinite(frames)), None)

    @cached_property
    def frames(self) -> int:
        """Environment frames at the last row of any kind."""
        last = [int(frames[-1]) for columns in self.all_columns.values() for frames, _ in columns.values()]
        return max(last, default=0)

    @cached_property
    def wall_seconds(self) -> float:
        """Seconds of the run, from ``done.json``, or else from the last row that has them."""
        total = (self.done or {}).get("wall_seconds")
        if is_number(total) and math.isfinite(total):
            return float(total)
        found = [finite(columns.get("wall_seconds", NO_POINTS))[1] for columns in self.all_columns.values()]
        return max((float(each.max()) for each in found if len(each)), default=0.0)

    @cached_property
    def all_columns(self) -> dict[str, dict[str, Column]]:
        """The columns of all events, read in one pass and cached."""
        return read_columns(metrics_rows(self.path))

    @cached_property
    def _eval_columns(self) -> dict[str, Column]:
        # A run has a hundred training rows per evaluation, so only lines with the event's name are parsed.
        return read_columns(metrics_rows(self.path, '"eval"')).get("eval", {})

    def _columns(self, event: str) -> dict[str, Column]:
        if event == "eval" and "all_columns" not in self.__dict__:
            return self._eval_columns
        return self.all_columns.get(event, {})


def read_run(folder: Path, config: dict[str, Any] | None = None) -> RunRecord:
    """The run in ``folder``, with settings ``config`` (default: its ``config.yaml``).

    Raises:
        UserError: ``config.yaml`` is missing or not that of a run, or a file cannot be read.
    """
    config = with_targets(flat(read_yaml(folder / "config.yaml"))) if config is None else config
    config = {printable(str(key)): _printable(value) for key, value in config.items()}
    starts = (read_json(folder / "provenance.json") or {}).get("starts")
    if missing := [name for name in ("env.name", "run.seed") if name not in config]:
        raise UserError(f"{folder}/config.yaml must be that of a run, got no {' and no '.join(missing)} in it.")
    seed = config["run.seed"]
    if not isinstance(seed, int):
        raise UserError(f"{folder}/config.yaml must have an integer run.seed, got {str(seed)[:40]!r}.")
    command = printable(read_text(folder / "command.txt").strip())
    script = _script(command)
    return RunRecord(
        path=folder,
        recipe=str(config.get("method") or Path(script).stem or "unknown"),
        env="/".join(str(part) for part in (config["env.name"], config.get("env.game")) if part),
        seed=seed,
        config={key: value for key, value in config.items() if key not in _NOT_SETTINGS},
        starts=tuple(start for start in (starts if isinstance(starts, list) else ()) if isinstance(start, dict)),
        done=read_json(folder / "done.json"),
        command=command,
        script=script,
    )


def _printable(value: object) -> object:
    """``value`` with its text made safe to print."""
    if isinstance(value, list):
        return [_printable(each) for each in value]
    return printable(value) if isinstance(value, str) else value


def _code_of(start: dict[str, Any]) -> str:
    versions = start.get("versions")
    version = versions.get("torchrl_reg") if isinstance(versions, dict) else None  # a wheel has no commit
    return str(start.get("commit") or version or "unknown")


def _script(command: str) -> str:
    """The recipe's file in ``command``, the same for all checkouts and copies of sweeps; empty without one."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    if words[:2] == ["torchrl-reg", "run"] and len(words) > 2 and not words[2].endswith(".py"):
        return f"recipes/{words[2]}.py"
    path = next((os.path.normpath(word) for word in words if word.endswith(".py")), "")
    ours = re.search(r"(?:^|/)(recipes/[^/]+|own/[0-9a-f]{8}/[^/]+)$", path)
    return ours[1] if ours else path
