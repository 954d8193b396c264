"""``metrics.jsonl``, the record of a run: one JSON object per line, one line per event."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.training.errors import RecordError
from torchrl_reg.training.files import append, sync

WALL_CLOCK_COLUMNS = frozenset({"fps", "wall_seconds", "eval_seconds"})
"""Columns that depend on the machine's speed (frames a second, seconds); two runs of one seed agree in all others."""


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
    """Appends rows to ``metrics.jsonl``, drops those past a checkpoint, and notices what it did not write itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = 0
        self._digest = sha256()

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row in one system call; a value that is not finite becomes ``null``.

        Raises:
            RecordError: it could not be written (a full disk).
        """
        finite = {name: _json_number(value) for name, value in row.items()}
        line = (json.dumps(finite, allow_nan=False) + "\n").encode()
        try:
            append(self.path, line)
        except OSError as error:
            raise RecordError(
                f"{self.path} could not be written ({error.strerror}); checkpoints are intact, so free some space "
                "and run the same command to continue."
            ) from error
        self._bytes += len(line)
        self._digest.update(line)

    def mark(self) -> dict[str, Any]:
        """What a checkpoint remembers of the rows so far, which are safely on disk: their bytes and SHA-256."""
        if self.path.exists():
            sync(self.path)
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def restart(self) -> None:
        """Drops every row."""
        self._bytes, self._digest = 0, sha256()
        if self.path.exists():
            os.truncate(self.path, 0)

    def continue_from(self, mark: Mapping[str, Any]) -> None:
        """Drops everything past ``mark``: rows of frames that will be run again.

        Raises:
            RecordError: the rows up to there are not those that were written.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        digest = sha256()
        if size >= mark["bytes"]:
            self._digest_rows(digest, mark["bytes"])
        if digest.hexdigest() != mark["sha256"]:
            raise RecordError(f"{self.path} {self._damage(size, mark['bytes'])}")
        self._bytes, self._digest = mark["bytes"], digest
        if self.path.exists():
            os.truncate(self.path, self._bytes)

    def _digest_rows(self, digest: Any, size: int) -> None:
        """Feeds the first ``size`` bytes to ``digest``, a piece at a time."""
        if not size:
            return
        with open(self.path, "rb") as file:
            while size > 0 and (piece := file.read(min(size, 1 << 20))):
                digest.update(piece)
                size -= len(piece)

    def _damage(self, size: int, expected: int) -> str:
        if not self.path.exists():
            found = "is gone"
        elif size < expected:
            found = f"is damaged ({size:,} bytes, of {expected:,} that the checkpoint knows)"
        else:
            found = f"is damaged (the {expected:,} bytes that the checkpoint knows were changed)"
        return (
            f"{found}: put it back from a copy, or delete {self.path.parent / 'checkpoints'} and run the same command "
            "to start from the beginning."
        )


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: Updates whose scalars are summed at once.
_TOGETHER = 64


class RunningMeans:
    """Means of detached scalars, summed on their device and read once a log row.

    ``add`` takes a TensorDict of scalars; updates need not all return the same entries.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}
        self._waiting: dict[tuple[str, ...], list[Tensor]] = {}

    def add(self, scalars: TensorDictBase | Mapping[str, Tensor]) -> None:
        names = tuple(scalars.keys())
        if not names:
            return
        waiting = self._waiting.setdefault(names, [])
        waiting.append(torch.stack(list(scalars.values())))  # a copy: coefficients change, CUDA graphs write again
        if len(waiting) >= _TOGETHER:
            self._sum()

    def _sum(self) -> None:
        """Adds what waits to the sums, one update after the other, in a few operations."""
        for names, waiting in self._waiting.items():
            values = torch.stack(waiting)
            if names in self._sums:
                values = torch.cat([self._sums[names].to(values.device).unsqueeze(0), values])
            # Double precision: a float32 sum of 10^5 losses would lose their last three digits.
            self._sums[names] = values.double().cumsum(0)[-1]
            self._counts[names] = self._counts.get(names, 0) + len(waiting)
        self._waiting = {}

    def pop(self) -> dict[str, float]:
        """The mean of every entry since the last call."""
        self._sum()
        totals: dict[str, tuple[float, int]] = {}
        for names, sums in self._sums.items():
            count = self._counts[names]
            for name, value in zip(names, sums.tolist(), strict=True):
                previous, seen = totals.get(name, (0.0, 0))
                totals[name] = (previous + value, seen + count)
        self._sums, self._counts = {}, {}
        return {name: value / count for name, (value, count) in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        self._sum()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = dict(state["sums"])
        self._counts = dict(state["counts"])
