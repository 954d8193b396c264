"""n-step transitions for the recipes: the library's transform, with a run's messages and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase

from torchrl_reg.modules.n_step import NStepTransform
from torchrl_reg.training.errors import require
from torchrl_reg.training.packing import pack_tensordict, unpack_tensordict


class NStep:
    """A :class:`~torchrl_reg.modules.NStepTransform` called on each batch ``[N, T]`` that was collected.

    A checkpoint holds the rows whose window is not complete yet (``run.track(n_step=...)``).

    Args:
        n: number of steps, >= 1; 1 passes batches through.
        gamma: discount.

    Raises:
        ConfigError: ``n`` < 1, or a first batch of fewer than n steps.
    """

    def __init__(self, n: int, gamma: float) -> None:
        require(n >= 1, "algo.n_steps", ">= 1", n)
        self.transform = NStepTransform(n, gamma)

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        if self.transform.n == 1:
            return batch
        rows = self.transform.inv(batch)
        require(rows is not None, "algo.collect_steps", f"at least algo.n_steps={self.transform.n}", batch.shape[-1])
        return rows

    def cut_episodes(self) -> None:
        """Ends the episodes of the waiting rows: what the next batch brings is not their continuation."""
        self.transform.cut_episodes()

    def state_dict(self) -> dict[str, Any]:
        """The rows that wait for the rest of their window, packed."""
        waiting = self.transform.waiting
        return {"waiting": None if waiting is None else pack_tensordict(waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues with the rows of a :meth:`state_dict`."""
        self.transform.waiting = None if state["waiting"] is None else unpack_tensordict(state["waiting"])
