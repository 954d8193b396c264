"""A point in the plane with four goals around it: the smallest task whose best policy has several modes.

Shapes: ``N`` sub-environments.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

#: Where the goals lie ``[4, 2]``.
GOALS = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])


class MultiGoalEnv(EnvBase):
    """``N`` points that move by their action, ``s' = s + a``, within ``[-7, 7]^2``, from near the origin.

    Keys: ``observation`` and ``action`` (float32 ``[N, 2]``), ``reward``, ``done`` ... (``[N, 1]``). A step costs ``30
    |a|^2`` and the squared distance of s' to the nearest goal; within distance 1 of a goal the
    episode terminates with a reward of 10. All goals are alike, so at the origin four actions are best. It has no state
    but its random generator: a step can be taken from any ``observation``.

    Args:
        num_envs: number of sub-environments N.
        max_episode_frames: steps after which an episode is truncated.
        device: where the tensors live.

    Source: Haarnoja et al. 2017 (soft Q-learning), the released ``multigoal`` environment; paths of 30 steps.

    Example:
        >>> env = MultiGoalEnv(4)
        >>> env.rollout(3)["next", "reward"].shape
        torch.Size([4, 3, 1])
    """

    def __init__(self, num_envs: int, *, max_episode_frames: int = 30, device: torch.device | str = "cpu") -> None:
        super().__init__(device=torch.device(device), batch_size=torch.Size([num_envs]))
        self.max_episode_frames = max_episode_frames
        self._generator = torch.Generator().manual_seed(0)
        self._goals = GOALS.to(self.device)
        batch = self.batch_size
        self.observation_spec = Composite(
            observation=Bounded(-7.0, 7.0, torch.Size([*batch, 2]), dtype=torch.float32, device=self.device),
            steps=Unbounded(torch.Size([*batch, 1]), dtype=torch.int64, device=self.device),
            shape=batch,
            device=self.device,
        )
        self.action_spec = Bounded(-1.0, 1.0, torch.Size([*batch, 2]), dtype=torch.float32, device=self.device)
        self.reward_spec = Unbounded(torch.Size([*batch, 1]), dtype=torch.float32, device=self.device)
        flag = Binary(1, shape=torch.Size([*batch, 1]), dtype=torch.bool, device=self.device)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=batch, device=self.device
        )

    def _reset(self, tensordict: TensorDictBase | None) -> TensorDictBase:
        # Of all points: TorchRL keeps those that were not to be reset.
        fresh = 0.1 * torch.randn(*self.batch_size, 2, generator=self._generator)
        state, steps = fresh.to(self.device), torch.zeros_like(fresh[..., :1], dtype=torch.int64, device=self.device)
        return TensorDict({"observation": state, "steps": steps}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"].clamp(-1.0, 1.0)
        state = (tensordict["observation"] + action).clamp(-7.0, 7.0)
        distance = self.distance(state)
        steps = tensordict["steps"] + 1
        terminated = distance.sqrt() < 1.0
        truncated = steps >= self.max_episode_frames
        reward = -30.0 * action.square().sum(-1, keepdim=True) - distance + 10.0 * terminated
        ends = {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
        return TensorDict(
            {"observation": state, "steps": steps, "reward": reward, **ends}, self.batch_size, device=self.device
        )

    def distance(self, state: Tensor) -> Tensor:
        """Squared distance of ``state [*B, 2]`` to the nearest goal, ``[*B, 1]``."""
        return (state.unsqueeze(-2) - self._goals).square().sum(-1).amin(-1, keepdim=True)

    def snapshot(self) -> dict[str, Tensor]:
        """The random generator: everything else is in the tensordict that is stepped."""
        return {"generator": self._generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> bool:
        """Restores the generator; True, because the future is then the same."""
        self._generator.set_state(snapshot["generator"])
        return True

    def _set_seed(self, seed: int | None) -> None:
        self._generator.manual_seed(0 if seed is None else seed)
