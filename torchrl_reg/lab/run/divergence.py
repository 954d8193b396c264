"""Detects divergence: stops runs with NaN or infinity, and warns of values that exceed the bound set by rewards.

The checks run once per log row: a check per update would wait for the device.
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
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.run.files import write_atomically

#: Written beside ``metrics.jsonl`` when a run stops because a number is not finite.
FAILED = "failed.json"
#: Values this many times beyond their bound have diverged; smaller overestimates are common and often recover.
FACTOR = 10.0
#: Nats per step for losses that report a temperature but no entropy: the entropy of 22,000 actions.
_NATS = 10.0


def warn(sentence: str) -> None:
    """Prints a warning to stderr, above the progress bar if there is one."""
    tqdm = sys.modules.get("tqdm")
    say(f"warning: {sentence}", to_stderr=True, write=tqdm.tqdm.write if tqdm else print)


class FiniteWatch:
    """Stops a run whose loss, gradients or parameters are not finite.

    Args:
        path: the run folder, for ``failed.json``.
        on_nan: ``"stop"`` raises, ``"continue"`` warns once.

    Attributes:
        first_bad_frames: frames at which a number was first not finite; None until then.
    """

    def __init__(self, path: Path, on_nan: str = "stop") -> None:
        self.path = path
        self.on_nan = on_nan
        self.first_bad_frames: int | None = None
        self._last_good_frames = 0

    def start(self, frames: int) -> None:
        """Starts from a finite state, new or from a checkpoint."""
        self._last_good_frames = frames

    def check_finite(
        self,
        frames: int,
        row: Mapping[str, Any],
        optimizers: Iterable[torch.optim.Optimizer],
        last_checkpoint: Path | None,
        *,
        can_go_on: bool = True,
    ) -> bool:
        """True if the means in ``row`` and everything ``optimizers`` train are finite at ``frames``; else warns once.

        Raises:
            UserError: they are not, as ``failed.json`` says, and ``on_nan`` is ``"stop"`` or the run cannot go on.
        """
        bad = {k: v for k, v in _watched(row, list(optimizers)).items() if v is not None and not math.isfinite(v)}
        if not bad:
            self._last_good_frames = frames
            return True
        name, value = next(iter(bad.items()))
        problem = f"{name} is {value} at frame {frames:,} (finite at {self._last_good_frames:,})"
        if self.on_nan == "stop" or not can_go_on:
            failure = {"quantity": name, "value": str(value), "frames": frames}
            raise self._failure(problem, failure, last_checkpoint)
        if self.first_bad_frames is None:
            self.first_bad_frames = frames
            warn(f"{problem}; as run.on_nan=continue the run goes on, without further checkpoints.")
        return False

    def _failure(self, problem: str, failure: dict[str, object], last_checkpoint: Path | None) -> UserError:
        """Writes ``failed.json``; returns the error."""
        good = f"the last good checkpoint is {last_checkpoint}" if last_checkpoint else "there is no checkpoint yet"
        regardless = "or go on regardless with run.on_nan=continue"
        if self.on_nan == "continue":
            regardless = "as such a policy cannot be sampled, and run.on_nan=continue does not help"
        lower = "lower the learning rate, say, in another run.dir"
        sentence = f"{problem}, so the run stopped; {good}; {lower}, {regardless}."
        checkpoint = None if last_checkpoint is None else str(last_checkpoint)
        failure |= {"last_finite_frames": self._last_good_frames, "last_checkpoint": checkpoint}
        failure |= {"returncode": 1, "last_line": sentence, "ended_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_atomically(self.path / FAILED, json.dumps(failure, indent=2) + "\n")
        return UserError(sentence)


def _watched(row: Mapping[str, Any], optimizers: list[torch.optim.Optimizer]) -> dict[str, float | None]:
    """Numbers that must be finite by name: losses, then gradients, then parameters and moments."""
    means = {name: value for name, value in row.items() if name.startswith("loss") or name == "grad_norm"}
    parameters = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    # Adam divides by the second moment: a parameter with an infinite one never moves again, and its loss stays finite.
    states = [part for o in optimizers for state in o.state.values() for part in state.values()]
    groups = {
        "gradient": [p.grad for p in parameters if p.grad is not None],
        "parameter": [p.detach() for p in parameters],
        "moment of the optimizer": [part for part in states if isinstance(part, Tensor) and part.is_floating_point()],
    }
    # The maximum norm: the Euclidean norm of finite numbers can overflow.
    zero = [torch.zeros(())]
    largest = [get_total_norm(group or zero, norm_type=math.inf).cpu().double() for group in groups.values()]
    found = torch.stack(largest).tolist()
    return means | {f"the largest {name}": value for name, value in zip(groups, found, strict=True)}


class ValueWatch:
    """Warns once if the values in training rows, or of chosen actions, exceed a bound.

    No value of a policy exceeds ``(max |r| + c) / (1 - gamma)``, ``c`` being what regularizer and shaping add to a
    reward: ``tau`` times the entropy, and a bonus that is clipped (one that is not widens gaps and leaves the best
    action's value). Beyond ``FACTOR`` times that, or times 1 where it is less (untrained networks), they have diverged.
    All of it is read at log rows; of a batch, its largest reward and where its values are.

    Args:
        path: the run folder, for the warning.

    Attributes:
        diverged_frames: frames of the first row beyond the bound; None until then.
    """

    def __init__(self, path: Path) -> None:
        self.diverged_frames: int | None = None
        self._path = path
        self._reward, self._cost = torch.zeros(()), 0.0
        self._chosen: Tensor | None = None

    def observe(self, batch: TensorDictBase) -> None:
        """Reads the rewards and chosen values of a batch, without waiting for the device."""
        reward = fast_get(batch, ("next", "reward"))
        if reward is not None:
            largest = torch.linalg.vector_norm(reward, math.inf, dtype=torch.float32)
            self._reward = torch.maximum(self._reward, largest)
        self._chosen = fast_get(batch, "chosen_action_value")

    def check_divergence(self, row: Mapping[str, Any], gamma: float | None) -> dict[str, int]:
        """Columns to add to a training row: ``diverged_frames`` once values have exceeded the bound."""
        if self.diverged_frames is None and gamma is not None and gamma < 1 and row["updates"]:
            self._cost = max(self._cost, _added(row))
            reward = float(self._reward)
            bound = max((reward + self._cost) / (1 - gamma), 1.0)
            # TorchRL's actor-critics report no value; their actor's loss is the mean of -Q.
            names = ("value" if "value" in row else "loss_actor", "td_error")
            values = {name: abs(row[name]) for name in names if row.get(name) is not None}
            # Losses are squared errors or smaller; with values on a grid (C51) nothing else grows.
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
    """The mean, or an upper bound, of what regularizer and shaping add to a reward."""
    tau = row.get("tau", row.get("alpha"))
    # A temperature set from the Bellman error grows with diverging values, and its entropy enters no value.
    is_bellman_error = not {"bellman_error", "squared_td_error"}.isdisjoint(row)
    entropy = 0.0 if tau is None or is_bellman_error else tau * abs(row.get("entropy", _NATS))
    bonus = abs(row["bonus"]) if row.get("bonus_clipped") else 0.0
    return entropy + bonus if math.isfinite(entropy + bonus) else 0.0
