"""Reads ``metrics.jsonl``, of finished runs and of runs still going on, in bounded memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.documents import opened
from torchrl_reg.analysis.errors import AnalysisError

#: Environment frames and values; NaN where a row has null.
Column = tuple[NDArray[np.int64], NDArray[np.float64]]
Row = dict[str, Any]
NO_POINTS: Column = (np.zeros(0, np.int64), np.zeros(0))

#: Bytes read at a time, of one row, and columns of one event: a record beyond is damaged.
_CHUNK, _LONGEST_ROW, _MOST_COLUMNS = 1 << 18, 1 << 20, 1000
#: Points that a column of training rows keeps; from there on neighbours are averaged.
LONGEST_CURVE = 2000
#: Columns that count up or are means of their own: of rows put together the last value holds, not the mean.
_LAST = frozenset({"updates", "wall_seconds", "return_last_100"})
_REMEMBERED = 256
#: Rows that are put together at once; a power of two, so that buckets hold equally many.
_FOLDED = 1024


class Tail:
    """Reads a growing file of JSON lines; every row is returned once.

    A resumed run cuts its file back to its last checkpoint and writes on: what lies before the place reached is then no
    longer what was read, and :meth:`read` says so by starting over.

    Args:
        path: the file; it may not exist yet.
        containing: only lines with this in them are parsed.
        last: begin with that many bytes at the end of the file.
    """

    def __init__(self, path: Path, *, containing: str = "", last: int | None = None) -> None:
        self.path = path
        #: The first line that is no row, in words; None while all are.
        self.problem: str | None
        self._containing, self._last = containing.encode(), last
        self._start_over()

    def read(self) -> tuple[list[Row], bool]:
        """The next new rows (none once all are read), and whether reading started over because the file was cut.

        A last line still being written waits for its end. Passed over are rows without an event or a number of frames,
        and with a note in ``problem`` lines that are no JSON object.
        """
        cut = False
        while True:
            before = self._offset
            try:
                with opened(self.path) as file:
                    file.seek(self._offset - len(self._before))
                    if file.read(len(self._before)) != self._before:
                        self._start_over()
                        cut, before = True, -1
                    lines = self._lines(file)
            except OSError as error:
                cut = cut or self._offset > 0
                self._start_over()
                self.problem = None if isinstance(error, FileNotFoundError) else error.strerror
                return [], cut
            rows = [row for line in lines if (row := self._row(line)) is not None]
            if rows or self._offset == before:
                return rows, cut

    def rows(self) -> Iterator[Row]:
        """All new rows, read a chunk at a time."""
        while rows := self.read()[0]:
            yield from rows

    def _start_over(self) -> None:
        self._offset, self._line, self.problem = 0, 0, None
        self._before = b""  # the last bytes in front of the offset

    def _lines(self, file: BinaryIO) -> list[bytes]:
        if self._last is not None and self._offset == 0:
            self._offset = max(0, file.seek(0, 2) - self._last)
            file.seek(self._offset)
            self._offset += len(file.readline()) if self._offset else 0  # its beginning may be missing
        file.seek(self._offset)
        new = file.read(_CHUNK)
        while b"\n" not in new and len(new) <= _LONGEST_ROW and (more := file.read(_CHUNK)):
            new += more
        whole = new[: new.rfind(b"\n") + 1]
        if not whole and len(new) > _LONGEST_ROW:
            self.problem = self.problem or f"a row longer than {_LONGEST_ROW} bytes in line {self._line + 1}"
            whole = new
        self._offset += len(whole)
        self._before = (self._before + whole)[-_REMEMBERED:]
        return whole.split(b"\n")[:-1]

    def _row(self, line: bytes) -> Row | None:
        self._line += 1
        if self._containing not in line:
            return None
        try:
            # A number that is not finite is None, as training writes it.
            row = json.loads(line, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            if line.strip() or self._last is None:
                shown = line[:40].decode(errors="replace")
                self.problem = self.problem or f"{shown!r} in line {self._line}"
            return None
        frames = row.get("frames")
        there = isinstance(frames, int) and not isinstance(frames, bool) and 0 <= frames < 1 << 62
        return row if there and isinstance(row.get("event"), str) else None


def metrics_rows(folder: Path, containing: str = "") -> Iterator[Row]:
    """Rows of ``metrics.jsonl`` in ``folder`` whose line has ``containing`` in it; none without the file.

    Left out are a last line still being written (one without its line break) and rows without a name of an event or
    a number of frames. A number that is not finite is None, as training writes it.

    Raises:
        AnalysisError: another line is no JSON object.
    """
    tail = Tail(folder / "metrics.jsonl", containing=containing)
    for row in tail.rows():
        if tail.problem is not None:
            break
        yield row
    if tail.problem is not None:
        raise AnalysisError(f"{tail.path} must hold one JSON object a line, got {tail.problem}.")


class Columns:
    """The numbers in the rows of each event, by column.

    Evaluations are kept one by one; of other rows at most ``LONGEST_CURVE`` points a column, each the mean of a run of
    neighbours at the frames of the last of them, as if the run had written fewer rows.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._events: dict[str, dict[str, _Points]] = {}
        self.frames = 0
        self.extend(rows)

    def extend(self, rows: Iterable[Row]) -> None:
        """Adds rows, in the order of the file.

        Raises:
            AnalysisError: more columns than a record has.
        """
        for row in rows:
            event, frames = row["event"], row["frames"]
            columns = self._events.setdefault(event, {})
            self.frames = max(self.frames, frames)
            for name, value in row.items():
                if value is None or is_number(value):
                    if (points := columns.get(name)) is None:
                        if len(columns) >= _MOST_COLUMNS:
                            raise AnalysisError(f"metrics.jsonl must have at most {_MOST_COLUMNS} columns, got more.")
                        points = columns[name] = _Points(None if event == "eval" else LONGEST_CURVE, name in _LAST)
                    points.frames.append(frames)
                    points.values.append(value)
                    if len(points.frames) == _FOLDED:
                        points.fold()

    def of(self, event: str, name: str) -> Column:
        """Frames and values of a column; empty if there is none."""
        points = self._events.get(event, {}).get(name)
        return NO_POINTS if points is None else points.arrays()

    def all(self) -> dict[str, dict[str, Column]]:
        """Every column of every event; columns with the same frames share them."""
        found: dict[str, dict[str, Column]] = {}
        shared: dict[bytes, NDArray[np.int64]] = {}
        for event, columns in self._events.items():
            arrays = {name: points.arrays() for name, points in columns.items()}
            found[event] = {name: (shared.setdefault(x.tobytes(), x), y) for name, (x, y) in arrays.items()}
        return found


class _Points:
    """A column: at most ``limit`` buckets of ``every`` rows each (frames of the last, sum, count), and rows to come."""

    def __init__(self, limit: int | None, last: bool) -> None:
        self.frames: list[int] = []
        self.values: list[float | None] = []
        self._limit, self._last, self._every = limit, last, 1
        self._buckets: list[NDArray[Any]] = [np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)]

    def fold(self) -> None:
        """Moves the rows read so far into buckets."""
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


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is an int or a float, not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(column: Column) -> Column:
    """The points of ``column`` whose value is a number."""
    frames, values = column
    there = ~np.isnan(values)
    return frames[there], values[there]
