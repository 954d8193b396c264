"""A point in the plane with four goals around it: a minimal task whose optimal policy is multimodal.

Shapes: ``N`` sub-environments.
"""

from __future__ import annotations

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Bounded

from torchrl_reg.envs.tensor_env import TensorEnv

#: Positions of the goals ``[4, 2]``.
GOALS = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
#: Their names in ``game``.
DIRECTIONS = ("right", "left", "up", "down")


class MultiGoalEnv(TensorEnv):
    """``N`` points that move by their action, ``s' = s + a``, within ``[-7, 7]^2``, from near the origin.

    Keys: ``observation`` and ``action`` (float32 ``[N, 2]``), ``reward``, ``done`` ... (``[N, 1]``). A step costs ``30
    |a|^2`` plus the squared distance of s' to the nearest goal; within distance 1 of a goal the episode terminates with
    a bonus of 10. The goals are symmetric, so at the origin four actions are optimal. Its only state is a random
    generator: a step can be taken from any ``observation``.

    Args:
        num_envs: number of sub-environments N.
        max_episode_frames: steps after which an episode is truncated.
        game: the goals, names of ``DIRECTIONS`` joined by ``_`` (``"right_up"``); all by default.
        device: where the tensors live.

    Raises:
        ValueError: an unknown goal.

    Source: Haarnoja et al. 2017 (soft Q-learning), the released ``multigoal`` environment; paths of 30 steps.

    Example:
        >>> env = MultiGoalEnv(4)
        >>> env.rollout(3)["next", "reward"].shape
        torch.Size([4, 3, 1])
    """

    def __init__(
        self, num_envs: int, *, max_episode_frames: int = 30, game: str = "", device: torch.device | str = "cpu"
    ) -> None:
        names = game.split("_") if game else DIRECTIONS
        if not set(names) <= set(DIRECTIONS):
            raise ValueError(f"game must join names of {', '.join(DIRECTIONS)} by _, got {game!r}.")
        position, action = (Bounded(-limit, limit, (2,), dtype=torch.float32) for limit in (7.0, 1.0))
        super().__init__(
            num_envs, {"observation": position}, action, max_episode_frames=max_episode_frames, device=device
        )
        self._generator.manual_seed(0)
        self._goals = GOALS[[DIRECTIONS.index(name) for name in names]].to(device)

    def _begin(self) -> dict[str, Tensor]:
        start = 0.1 * torch.randn(*self.batch_size, 2, generator=self._generator)
        return {"observation": start.to(self.device)}

    def _advance(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        action = tensordict["action"].clamp(-1.0, 1.0)
        state = (tensordict["observation"] + action).clamp(-7.0, 7.0)
        distance = self.distance(state)
        terminated = distance.sqrt() < 1.0
        reward = -30.0 * action.square().sum(-1, keepdim=True) - distance + 10.0 * terminated
        return {"observation": state}, reward, terminated

    def distance(self, state: Tensor) -> Tensor:
        """Squared distance of ``state [*B, 2]`` to the nearest goal, ``[*B, 1]``."""
        return (state.unsqueeze(-2) - self._goals).square().sum(-1).amin(-1, keepdim=True)
