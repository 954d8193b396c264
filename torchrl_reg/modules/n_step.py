"""A TorchRL transform from one-step to n-step transitions.

Shapes: ``*N`` environments (or none), ``T`` time steps.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.envs import Transform

from torchrl_reg.regularizers.checks import check_discount, check_integer


def time_dim(tensordict: TensorDictBase) -> int:
    """The dimension of time: the one named ``"time"``, as collectors name it, or else the last of the batch."""
    names = tensordict.names if tensordict.batch_dims else []
    return names.index("time") if "time" in names else max(tensordict.batch_dims - 1, 0)


class NStepTransform(Transform):
    """Turns batches ``[*N, T]`` of one-step transitions into n-step ones, delayed by up to n - 1 rows.

    Each row gets the reward ``sum_i gamma^i r_{t+i}`` (reward units) over its window, the ``next`` entries of the
    window's last step (its flags included) and ``steps_to_next_obs [*N, T, 1]``, its length: n, or less where the
    episode ends first. A one-step estimator then bootstraps with ``gamma^steps_to_next_obs``. Rows whose window is not
    complete yet are returned with the next batch; if a batch ends every episode, all its rows are returned.

    TorchRL's :class:`~torchrl.envs.MultiStepTransform` leaves the flags of the window's first step, so that an episode
    that ends inside the window is bootstrapped beyond its end.

    It acts when data enter a buffer, ``ReplayBuffer(transform=NStepTransform(3, 0.99))``, or when they leave a
    collector, ``Collector(..., postproc=NStepTransform(3, 0.99).inv)``; sampled data pass through unchanged. The
    batches of one stream must follow each other: where environments were reset between two without a ``done``, call
    :meth:`truncate_episodes`.

    Source: Watkins 1989 (n-step returns, without importance weights).

    Args:
        n: number of steps, >= 1; 1 passes batches through.
        gamma: discount in [0, 1].
        reward_key, done_key: names within ``"next"``.
        flatten: return the rows as ``[rows]``, for a storage of one dimension.

    Attributes:
        waiting: the rows whose window is not complete yet, or None; included in ``state_dict``.

    Raises:
        ValueError: ``n`` < 1, ``gamma`` outside [0, 1].

    >>> from torchrl.data import LazyTensorStorage, ReplayBuffer
    >>> buffer = ReplayBuffer(storage=LazyTensorStorage(100), transform=NStepTransform(3, 0.9, flatten=True))
    >>> flags = torch.tensor([[False], [False], [False], [False], [True]])
    >>> step = {"reward": torch.ones(5, 1), "done": flags, "terminated": flags, "observation": torch.arange(5) + 1}
    >>> _ = buffer.extend(TensorDict({"observation": torch.arange(5), "next": step}, [5]))
    >>> buffer[:]["next", "reward"].squeeze(-1)
    tensor([2.7100, 2.7100, 2.7100, 1.9000, 1.0000])
    >>> buffer[:]["next", "observation"], buffer[:]["steps_to_next_obs"].squeeze(-1)
    (tensor([3, 4, 5, 5, 5]), tensor([3, 3, 3, 2, 1]))
    """

    def __init__(
        self,
        n: int,
        gamma: float,
        *,
        reward_key: NestedKey = "reward",
        done_key: NestedKey = "done",
        flatten: bool = False,
    ) -> None:
        super().__init__()
        self.n, self.gamma = check_integer(n, "n", 1, "steps"), check_discount(gamma, "gamma")
        self.flatten = flatten
        self.reward_key, self.done_key = reward_key, done_key
        self.waiting: TensorDictBase | None = None

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Sampled data, unchanged."""
        return tensordict

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase | None:
        return self.complete(tensordict)

    def complete(self, tensordict: TensorDictBase) -> TensorDictBase | None:
        """The rows whose window is complete; None where there is none yet (a buffer then stores nothing).

        ``inv(tensordict)`` without the overhead of TorchRL's base class.
        """
        if not tensordict.ndim:
            raise ValueError("data must be rows [*B, T] in order of time (buffer.extend), got a single row.")
        if (time := time_dim(tensordict)) != tensordict.ndim - 1:
            raise ValueError(f"data must have time as their last dimension ([*B, T]), got it as dimension {time}.")
        reward = tensordict["next", self.reward_key]
        if reward.shape != (*tensordict.shape, 1):  # of several agents: windows would run over them
            raise ValueError(f"The reward must be {[*tensordict.shape, 1]}, got {list(reward.shape)}.")
        if self.n > 1:
            rows = tensordict if self.waiting is None else self._before(tensordict)
            if not rows.shape[-1]:
                return None
            complete = rows.shape[-1] - self.n + 1
            accumulated, ended = self._accumulate(rows), rows["next", self.done_key][..., -1, 0].all()
            # Cloned: a collector may overwrite this memory with its next batch.
            self.waiting = None if ended else rows[..., max(complete, 0) :].clone()
            complete = rows.shape[-1] if ended else complete
            if complete < 1:
                return None
            tensordict = accumulated[..., :complete]
        return tensordict.reshape(-1) if self.flatten else tensordict

    def truncate_episodes(self) -> None:
        """Ends the episodes of the waiting rows; call it if the next batch does not continue them."""
        if self.waiting is not None:
            for key in ("truncated", self.done_key):
                if ("next", key) in self.waiting.keys(include_nested=True):
                    self.waiting["next", key][..., -1, :] = True

    def get_extra_state(self) -> dict[str, Any]:
        """The waiting rows, for ``state_dict``."""
        if self.waiting is None:
            return {"rows": None}
        leaves = self.waiting.items(include_nested=True, leaves_only=True)
        return {"rows": {key: leaf.clone() for key, leaf in leaves}, "batch_size": tuple(self.waiting.batch_size)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the waiting rows from a ``state_dict``."""
        rows = state["rows"]
        self.waiting = None if rows is None else TensorDict(rows, state["batch_size"]).clone()

    def _before(self, batch: TensorDictBase) -> TensorDictBase:
        """The waiting rows, then those of ``batch``."""
        device = batch["next", self.reward_key].device
        waiting = self.waiting
        assert waiting is not None
        if waiting["next", self.reward_key].device != device:  # loaded from a checkpoint
            waiting = waiting.to(device)
        return torch.cat([waiting, batch], -1)

    def _accumulate(self, rows: TensorDictBase) -> TensorDictBase:
        length = rows.shape[-1]
        reward = rows["next", self.reward_key].squeeze(-1)
        done = rows["next", self.done_key].squeeze(-1)
        total, steps = reward.clone(), torch.ones_like(done, dtype=torch.int64)
        alive = ~done
        for i in range(1, self.n):
            # Row t includes step t + i if no episode ended between them and t + i is inside the batch.
            ahead = torch.arange(i, length + i, device=reward.device).clamp(max=length - 1)
            inside = alive & (torch.arange(length, device=reward.device) + i < length)
            total = total + self.gamma**i * torch.where(inside, reward[..., ahead], 0.0)
            steps = steps + inside
            alive = inside & ~done[..., ahead]
        last = torch.arange(length, device=reward.device) + steps - 1
        out = rows.copy()
        out["next"] = rows["next"].gather(-1, last)
        out["next", self.reward_key] = total.unsqueeze(-1)
        out["steps_to_next_obs"] = steps.unsqueeze(-1)
        return out
