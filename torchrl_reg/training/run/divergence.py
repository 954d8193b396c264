"""Divergence that stays finite: values beyond what the rewards seen so far can add up to."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.torchrl_compat import entry

#: Values this many times beyond their bound have diverged; to overestimate by less is common, and often heals.
FACTOR = 10.0
#: Nats a step where a loss reports a temperature and no entropy: the entropy of 22,000 actions.
_NATS = 10.0


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

    def see(self, batch: TensorDictBase) -> None:
        """Notes a batch whose rewards are those that are learnt from; waits for no device."""
        reward = entry(batch, ("next", "reward"))
        if reward is not None:
            largest = torch.linalg.vector_norm(reward, math.inf, dtype=torch.float32)
            self._reward = torch.maximum(self._reward, largest)
        self._chosen = entry(batch, "chosen_action_value")

    def judge(self, row: Mapping[str, Any], gamma: float | None) -> dict[str, int]:
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
                print(
                    f"warning: {self._path} diverges: {name} is {values[name]:.3g} at frame {row['frames']:,}, where "
                    f"rewards of at most {reward:.3g} allow {bound:.3g}; lower the learning rate, say, or copy the "
                    "target less often.",
                    file=sys.stderr,
                    flush=True,
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
