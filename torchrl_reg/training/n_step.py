"""n-step transitions out of one-step ones.

TorchRL's MultiStepTransform gathers the observation n steps on but leaves ``terminated`` that of the first step, so an
episode that ends inside the window would be bootstrapped beyond its end; hence our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDictBase

from torchrl_reg.training.errors import require
from torchrl_reg.training.packing import pack_tensordict, unpack_tensordict


class NStep:
    """Turns batches ``[N, T]`` of one-step transitions into n-step ones, a few rows late.

    Each row gets the reward ``sum_i gamma^i r_{t+i}`` over its window, the ``next`` entries of the window's last step
    and ``steps_to_next_obs [N, T, 1]``, its length: n, or less where the episode ends first. Rows whose window is not
    complete yet come with the next batch, and a checkpoint holds them (``run.track(n_step=...)``); where a batch ends
    every episode, all its rows come at once.

    Args:
        n: number of steps, >= 1; 1 passes batches through.
        gamma: discount.

    Raises:
        ConfigError: ``n`` < 1, or a first batch of fewer than n steps.
    """

    def __init__(self, n: int, gamma: float) -> None:
        require(n >= 1, "algo.n_steps", ">= 1", n)
        self.n = n
        self.gamma = gamma
        self._waiting: TensorDictBase | None = None

    def __call__(self, batch: TensorDictBase) -> TensorDictBase:
        if self.n == 1:
            return batch
        rows = batch if self._waiting is None else self._before(batch)
        complete = rows.shape[-1] - self.n + 1
        self._waiting = rows[..., max(complete, 0) :]
        if rows["next", "done"][..., -1, 0].all():
            complete, self._waiting = rows.shape[-1], None
        require(complete >= 1, "algo.collect_steps", f"at least algo.n_steps={self.n}", batch.shape[-1])
        return self._accumulate(rows)[..., :complete]

    def cut_episodes(self) -> None:
        """Ends the episodes of the waiting rows: what the next batch brings is not their continuation."""
        if self._waiting is not None:
            for key in ("truncated", "done"):
                if ("next", key) in self._waiting.keys(include_nested=True):
                    self._waiting["next", key][..., -1, :] = True

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": None if self._waiting is None else pack_tensordict(self._waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._waiting = None if state["waiting"] is None else unpack_tensordict(state["waiting"])

    def _before(self, batch: TensorDictBase) -> TensorDictBase:
        """The waiting rows, then those of ``batch``."""
        device = batch["next", "reward"].device
        waiting = self._waiting
        assert waiting is not None
        if waiting["next", "reward"].device != device:  # as a checkpoint gave them
            waiting = waiting.to(device)
        return torch.cat([waiting, batch], -1)  # type: ignore[return-value]

    def _accumulate(self, rows: TensorDictBase) -> TensorDictBase:
        length = rows.shape[-1]
        reward = rows["next", "reward"].squeeze(-1)
        done = rows["next", "done"].squeeze(-1)
        total, steps = reward.clone(), torch.ones_like(done, dtype=torch.int64)
        alive = ~done
        for i in range(1, self.n):
            # Row t takes in step t + i while no episode ended between them; beyond the batch nothing is taken in.
            ahead = torch.arange(i, length + i, device=reward.device).clamp(max=length - 1)
            inside = alive & (torch.arange(length, device=reward.device) + i < length)
            total = total + self.gamma**i * torch.where(inside, reward[..., ahead], 0.0)
            steps = steps + inside
            alive = inside & ~done[..., ahead]
        last = torch.arange(length, device=reward.device) + steps - 1
        out = rows.copy()
        out["next"] = rows["next"].gather(-1, last)
        out["next", "reward"] = total.unsqueeze(-1)
        out["steps_to_next_obs"] = steps.unsqueeze(-1)
        return out
