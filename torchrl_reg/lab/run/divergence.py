"""Runs that diverge: numbers that are not finite stop them, values beyond what rewards allow are warned of.

Looked at once per log row, so no update waits for it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn.utils import get_total_norm

from torchrl_reg.compat import fast_get
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.files import write_atomically

#: Beside ``metrics.jsonl`` once a run has stopped because of a number that is not finite.
FAILED = "failed.json"
#: Values this many times beyond their bound have diverged; to overestimate by less is common, and often heals.
FACTOR = 10.0
#: Nats a step where a loss reports a temperature and no entropy: the entropy of 22,000 actions.
_NATS = 10.0


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
            UserError: they are not, and ``on_nan`` is ``"stop"`` or the run cannot go on.
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

    def _stopped(self, said: str, failure: dict[str, Any], last_checkpoint: Path | None) -> UserError:
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
        return UserError(sentence)


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


class ValueWatch:
    """Compares the values in the training rows, and those the policy chose by, to a bound, and warns once.

    No value of a policy exceeds ``(max |r| + c) / (1 - gamma)``, ``c`` being what regularizer and shaping add to a
    reward: ``tau`` times the entropy, and a bonus that is clipped (one that is not widens gaps and leaves the best
    action's value). Beyond ``FACTOR`` times that, or times 1 where it is less (untrained networks), they have diverged.
    All of it is read at log rows; of a batch, its largest reward and where its values are.

    Args:
        path: the run folder, for the warning.

    Attributes:
        diverged_frames: the frame of the first row beyond the bound; None so far.
    """

    def __init__(self, path: Path) -> None:
        self.diverged_frames: int | None = None
        self._path = path
        self._reward, self._cost = torch.zeros(()), 0.0
        self._chosen: Tensor | None = None

    def observe(self, batch: TensorDictBase) -> None:
        """Notes a batch whose rewards are those that are learnt from; waits for no device."""
        reward = fast_get(batch, ("next", "reward"))
        if reward is not None:
            largest = torch.linalg.vector_norm(reward, math.inf, dtype=torch.float32)
            self._reward = torch.maximum(self._reward, largest)
        self._chosen = fast_get(batch, "chosen_action_value")

    def check_divergence(self, row: Mapping[str, Any], gamma: float | None) -> dict[str, int]:
        """Columns to add to a training row: ``diverged_frames``, from the first row on whose values are too large."""
        if self.diverged_frames is None and gamma is not None and gamma < 1 and row["updates"]:
            self._cost = max(self._cost, _added(row))
            reward = float(self._reward)
            bound = max((reward + self._cost) / (1 - gamma), 1.0)
            # Actor-critics of TorchRL report no value, but the mean of -Q as the actor's loss.
            names = ("value" if "value" in row else "loss_actor", "td_error")
            values = {name: abs(row[name]) for name in names if row.get(name) is not None}
            # At most squared errors; the only sign where values lie on a grid (C51).
            losses = [name for name in row if name.startswith("loss") and name != "loss_actor"]
            values |= {f"the root of {name}": abs(row[name]) ** 0.5 for name in losses}
            if self._chosen is not None:
                values["chosen_action_value"] = float(self._chosen.abs().mean())
            name = max(values, key=lambda name: values[name], default="")
            if name and values[name] > FACTOR * bound:
                self.diverged_frames = row["frames"]
                warn(
                    f"{self._path} diverges: {name} is {values[name]:.3g} at frame {row['frames']:,}, where rewards "
                    f"of at most {reward:.3g} allow {bound:.3g}; lower the learning rate, say, or copy the target "
                    "less often."
                )
        return {} if self.diverged_frames is None else {"diverged_frames": self.diverged_frames}

    def state_dict(self) -> dict[str, Any]:
        return {"reward": self._reward, "cost": self._cost, "diverged_frames": self.diverged_frames}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._reward, self._cost = state["reward"], state["cost"]
        self.diverged_frames = state["diverged_frames"]


def _added(row: Mapping[str, Any]) -> float:
    """The amount that regularizer and shaping add to a reward, at most or on average."""
    tau = row.get("tau", row.get("alpha"))
    # A temperature that is the Bellman error grows with what diverges, and its entropy is in no value.
    follows_error = not {"bellman_error", "squared_td_error"}.isdisjoint(row)
    entropy = 0.0 if tau is None or follows_error else tau * abs(row.get("entropy", _NATS))
    bonus = abs(row["bonus"]) if row.get("bonus_clipped") else 0.0
    return entropy + bonus if math.isfinite(entropy + bonus) else 0.0
