"""``metrics.jsonl``, the record of a run (one JSON object per line, one line per event), and the means in its rows."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.files import append, sync, write_error_advice

WALL_CLOCK_COLUMNS = frozenset({"fps", "wall_seconds", "eval_seconds"})
"""Columns that depend on the speed of the machine; two runs of one seed agree in all others."""
#: Updates summed in one operation.
_UPDATES_PER_SUM = 64


def strip_wall_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` without :data:`WALL_CLOCK_COLUMNS`.

    >>> strip_wall_clock({"event": "train", "frames": 100, "fps": 7150.2})
    {'event': 'train', 'frames': 100}
    """
    return {name: value for name, value in row.items() if name not in WALL_CLOCK_COLUMNS}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without an incomplete last line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` with ``None`` for values that are not finite: JSON has no NaN or infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _restore_advice(path: Path) -> str:
    return f"from a copy, or delete {path.parent / 'checkpoints'} and run the same command to start from the beginning."


class MetricsFile:
    """Appends rows to ``metrics.jsonl``, drops those past a checkpoint, and detects changes by other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = 0
        self._digest = sha256()

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row in one system call, with ``null`` for values that are not finite.

        Raises:
            UserError: the disk is full, or rows written before are gone.
        """
        self._check_written()
        line = (json.dumps(json_row(row), allow_nan=False) + "\n").encode()
        try:
            append(self.path, line)
        except OSError as error:
            raise UserError(
                f"{self.path} could not be written ({error.strerror}); {write_error_advice(error, self.path.parent)}."
            ) from error
        self._bytes += len(line)
        self._digest.update(line)

    def mark(self) -> dict[str, Any]:
        """Bytes and SHA-256 of the rows so far, for a checkpoint; the rows are on disk when it returns."""
        self._check_written()
        if self.path.exists():
            sync(self.path)
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def _check_written(self) -> None:
        """Raises ``UserError`` if rows written by this process are gone."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._bytes:
            raise UserError(
                f"{self.path} holds {size:,} of the {self._bytes:,} bytes written: it was "
                f"{'truncated' if size else 'deleted'} during the run: put it back {_restore_advice(self.path)}"
            )

    def keep_beside(self) -> Path | None:
        """Moves the rows to ``metrics.previous.jsonl`` unless that is longer; returns its path, None without rows."""
        if not self.path.exists() or not self.path.stat().st_size:
            return None
        kept = self.path.with_name("metrics.previous.jsonl")
        if not kept.exists() or kept.stat().st_size <= self.path.stat().st_size:
            os.replace(self.path, kept)
        return kept

    def restart(self) -> None:
        """Drops every row."""
        self.continue_from({"bytes": 0, "sha256": sha256().hexdigest()})

    def continue_from(self, mark: Mapping[str, Any]) -> None:
        """Drops everything past ``mark``: rows of frames that are run again.

        Raises:
            UserError: the rows up to ``mark`` have changed.
        """
        exists, expected = self.path.exists(), mark["bytes"]
        rows = self.path.read_bytes() if exists else b""
        digest = sha256(rows[:expected])
        if len(rows) < expected or digest.hexdigest() != mark["sha256"]:
            damage = f"the {expected:,} bytes recorded in the checkpoint were changed"
            if len(rows) < expected:
                damage = f"{len(rows):,} bytes, of {expected:,} recorded in the checkpoint"
            problem = f"is damaged ({damage})" if exists else "is gone"
            raise UserError(f"{self.path} {problem}: put it back {_restore_advice(self.path)}")
        self._bytes, self._digest = expected, digest
        if exists:
            os.truncate(self.path, expected)


class RunningMeans:
    """Means of detached scalars, summed on their device and read once per log row.

    ``add`` takes a TensorDict of scalars; entries may differ from update to update.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._waiting: dict[tuple[str, ...], list[Tensor]] = {}

    def add(self, scalars: TensorDictBase | Mapping[str, Tensor]) -> None:
        names = tuple(scalars.keys())
        if not names:
            return
        waiting = self._waiting.setdefault(names, [])
        # A copy: coefficients change in place, and CUDA graphs overwrite their outputs.
        waiting.append(torch.stack(list(scalars.values())))
        if len(waiting) >= _UPDATES_PER_SUM:
            self._sum()

    def _sum(self) -> None:
        """Adds the waiting scalars to the sums, in the order of the updates."""
        for names, waiting in self._waiting.items():
            values = torch.stack(waiting)
            if names in self._sums:
                values = torch.cat([self._sums[names].to(values.device).unsqueeze(0), values])
            # A float32 sum of 10^5 losses would lose their last three digits.
            self._sums[names] = values.double().cumsum(0)[-1]
            self._counts[names] += len(waiting)
        self._waiting = {}

    def pop(self) -> dict[str, float]:
        """The mean of each entry since the last call."""
        self._sum()
        totals: dict[str, float] = {}
        seen: Counter[str] = Counter()
        for names, sums in self._sums.items():
            for name, value in zip(names, sums.tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + value
                seen[name] += self._counts[names]
        self._sums, self._counts = {}, Counter()
        return {name: total / seen[name] for name, total in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        self._sum()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), Counter(state["counts"])
