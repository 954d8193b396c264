"""``metrics.jsonl``, the record of a run: one JSON object a line, one line an event."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.training.errors import RecordError
from torchrl_reg.training.files import append

#: Columns that depend on the machine's speed; two runs of one seed agree in all others.
WALL_CLOCK_COLUMNS = frozenset({"fps", "wall_seconds", "eval_seconds"})


def strip_wall_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` without the columns in which two identical runs differ.

    >>> strip_wall_clock({"event": "train", "frames": 100, "fps": 7150.2})
    {'event': 'train', 'frames': 100}
    """
    return {name: value for name, value in row.items() if name not in WALL_CLOCK_COLUMNS}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line still being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class MetricsFile:
    """Appends rows to ``metrics.jsonl`` and drops those past a checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row in one system call; a value that is not finite becomes ``null``.

        Raises:
            RecordError: it could not be written (a full disk).
        """
        finite = {name: _json_number(value) for name, value in row.items()}
        line = json.dumps(finite, allow_nan=False) + "\n"
        try:
            append(self.path, line.encode())
        except OSError as error:
            raise RecordError(
                f"{self.path} could not be written ({error.strerror}); checkpoints are intact, so free some space "
                "and run the same command to continue."
            ) from error

    def size(self) -> int:
        """Bytes on disk for good: what a checkpoint remembers."""
        if not self.path.exists():
            return 0
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def cut(self, size: int) -> None:
        """Drops everything past ``size`` bytes: rows of frames that will be run again."""
        if self.path.exists():
            os.truncate(self.path, size)


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunningMeans:
    """Means of detached scalars, summed on their device and read once a log row.

    ``add`` takes a TensorDict of scalars; updates need not all return the same entries.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, scalars: TensorDictBase | Mapping[str, Tensor]) -> None:
        names = tuple(scalars.keys())
        if not names:
            return
        values = torch.stack(list(scalars.values()))
        if names in self._sums:
            self._sums[names] = self._sums[names].to(values.device) + values
            self._counts[names] += 1
        else:
            # Double precision: a float32 sum of 10^5 losses would lose their last three digits.
            self._sums[names] = values.double()
            self._counts[names] = 1

    def pop(self) -> dict[str, float]:
        """The mean of every entry since the last call."""
        totals: dict[str, tuple[float, int]] = {}
        for names, sums in self._sums.items():
            count = self._counts[names]
            for name, value in zip(names, sums.tolist(), strict=True):
                previous, seen = totals.get(name, (0.0, 0))
                totals[name] = (previous + value, seen + count)
        self._sums, self._counts = {}, {}
        return {name: value / count for name, (value, count) in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = dict(state["sums"])
        self._counts = dict(state["counts"])
