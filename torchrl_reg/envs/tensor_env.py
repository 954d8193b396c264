"""TorchRL environments whose state is in the tensordict that is stepped.

Shapes: ``N`` sub-environments.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from torchrl_reg.envs.settings import check_value


class TensorEnv(EnvBase):
    """``N`` sub-environments stepped by tensor operations, from any state; their only own state is a random generator.

    Keys besides those of ``observation``: ``steps`` (since the start of the episode, int64 ``[N, 1]``) and, under
    ``next``, ``reward``, ``done``, ``terminated`` and ``truncated``, each ``[N, 1]``. After ``set_seed`` all draws are
    a function of the seed and ``N``, on any device.

    Subclasses implement :meth:`_begin` (episodes start) and :meth:`_advance` (one step).

    Args:
        num_envs: number of sub-environments N.
        observation, action: specs of one sub-environment's observations, by key, and of its action.
        max_episode_frames: steps after which an episode is truncated.
        device: where the tensors live and the steps are computed.

    Raises:
        ValueError: ``num_envs`` or ``max_episode_frames`` below 1.
    """

    def __init__(
        self,
        num_envs: int,
        observation: dict[str, TensorSpec],
        action: TensorSpec,
        *,
        max_episode_frames: int,
        device: torch.device | str,
    ) -> None:
        check_value("num_envs", num_envs)
        check_value("max_episode_frames", max_episode_frames)
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.max_episode_frames = max_episode_frames
        # Always on the CPU, so that a seed gives the same episodes on every device.
        self._generator = torch.Generator()
        steps, flag = Unbounded(1, dtype=torch.int64), Binary(1, dtype=torch.bool)
        self.observation_spec_unbatched = Composite(**observation, steps=steps).to(self.device)
        self.action_spec_unbatched = action.to(self.device)
        self.reward_spec_unbatched = Unbounded(1, dtype=torch.float32, device=self.device)
        flags = {name: flag.clone() for name in ("done", "terminated", "truncated")}
        self.done_spec_unbatched = Composite(flags).to(self.device)

    @abstractmethod
    def _begin(self) -> dict[str, Tensor]:
        """First observations of ``N`` episodes, by key."""

    @abstractmethod
    def _advance(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Next observations by key, rewards ``[N, 1]`` and bool ``terminated [N, 1]``."""

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDictBase:
        # All sub-environments draw, so that the draws of one do not depend on which others are reset; TorchRL discards
        # the new starts of running episodes.
        steps = torch.zeros(*self.batch_size, 1, dtype=torch.int64, device=self.device)
        return TensorDict({**self._begin(), "steps": steps}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observations, reward, terminated = self._advance(tensordict)
        steps = tensordict["steps"] + 1
        truncated = steps >= self.max_episode_frames
        flags = {"done": terminated | truncated, "terminated": terminated, "truncated": truncated}
        entries = {**observations, "steps": steps, "reward": reward, **flags}
        return TensorDict(entries, self.batch_size, device=self.device)

    def snapshot(self) -> dict[str, Tensor]:
        """The state of the random generator; all other state is in the tensordict that is stepped."""
        return {"generator": self._generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> bool:
        """Restores the generator; always True."""
        self._generator.set_state(snapshot["generator"])
        return True

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(0 if seed is None else seed)
