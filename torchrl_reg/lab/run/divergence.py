"""Runs that diverge: numbers that are not finite stop them. Looked at once per log row, so no update waits for it."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from torchrl_reg.lab.errors import DivergedError
from torchrl_reg.lab.run.files import write_atomically

#: Beside ``metrics.jsonl`` once a run has stopped because of a number that is not finite.
FAILED = "failed.json"


def warn(sentence: str) -> None:
    """Prints a warning that is seen at once, whatever collects the output."""
    bars = sys.modules.get("tqdm")  # where there is a bar, the warning goes above it
    (bars.tqdm.write if bars else print)(f"warning: {sentence}", file=sys.stderr)


class FiniteWatch:
    """Stops a run whose loss, gradients or parameters are not finite.

    Args:
        path: the run folder, which gets ``failed.json``.
        on_nan: ``"stop"`` raises, ``"continue"`` warns once.

    Attributes:
        first_bad_frames: the first frame at which something was found not to be finite; None so far.
    """

    def __init__(self, path: Path, on_nan: str = "stop") -> None:
        self.path = path
        self.on_nan = on_nan
        self.first_bad_frames: int | None = None
        self._last_good_frames = 0

    def start(self, frames: int) -> None:
        """Begins at a state that is finite: a fresh one, or that of a checkpoint."""
        self._last_good_frames = frames

    def is_finite(
        self,
        frames: int,
        row: Mapping[str, Any],
        optimizers: Iterable[torch.optim.Optimizer],
        last_checkpoint: Path | None,
        *,
        can_go_on: bool = True,
    ) -> bool:
        """True if the means in ``row`` and all that ``optimizers`` train are finite, at ``frames``.

        Raises:
            DivergedError: they are not, and ``on_nan`` is ``"stop"`` or the run cannot go on.
        """
        bad = {k: v for k, v in _watched(row, list(optimizers)).items() if v is not None and not math.isfinite(v)}
        if not bad:
            self._last_good_frames = frames
            return True
        name, value = next(iter(bad.items()))
        said = f"{name} is {value} at frame {frames:,} (finite at {self._last_good_frames:,})"
        if self.on_nan == "stop" or not can_go_on:
            failure = {"quantity": name, "value": str(value), "frames": frames}
            raise self._stopped(said, failure, last_checkpoint)
        if self.first_bad_frames is None:
            self.first_bad_frames = frames
            warn(f"{said}; as run.on_nan=continue the run goes on, without further checkpoints.")
        return False

    def _stopped(self, said: str, failure: dict[str, Any], last_checkpoint: Path | None) -> DivergedError:
        """Writes ``failed.json``; returns the error."""
        kept = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
        regardless = "or go on regardless with run.on_nan=continue"
        if self.on_nan == "continue":
            regardless = "as such a policy cannot be sampled, and run.on_nan=continue does not help"
        lower = "lower the learning rate, say, in another run.dir"
        sentence = f"{said}, so the run stopped; {kept}; {lower}, {regardless}."
        checkpoint = None if last_checkpoint is None else str(last_checkpoint)
        failure |= {"last_finite_frames": self._last_good_frames, "last_checkpoint": checkpoint}
        failure |= {"returncode": 1, "last_line": sentence, "ended_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_atomically(self.path / FAILED, json.dumps(failure, indent=2) + "\n")
        return DivergedError(sentence)


def _watched(row: Mapping[str, Any], optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """Numbers that must be finite, by name: losses before gradients before parameters."""
    means = {name: value for name, value in row.items() if name.startswith("loss") or name == "grad_norm"}
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    # Adam divides by an infinite second moment: its parameter never moves again, and nothing else shows it.
    states = [part for o in optimizers for state in o.state.values() for part in state.values()]
    groups = {
        "gradient": [p.grad for p in parameters if p.grad is not None],
        "parameter": [p.detach() for p in parameters],
        "moment of the optimizer": [part for part in states if isinstance(part, Tensor) and part.is_floating_point()],
    }
    # The largest magnitude, and not the Euclidean norm, which overflows on numbers that are finite.
    nothing = [torch.zeros(())]
    largest = [get_total_norm(group or nothing, norm_type=math.inf).cpu().double() for group in groups.values()]
    found = torch.stack(largest).tolist()
    return means | {f"the largest {name}": value for name, value in zip(groups, found, strict=True)}
