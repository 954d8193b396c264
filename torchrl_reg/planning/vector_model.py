"""An environment that gives and takes snapshots, as a model to plan in."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

from torchrl_reg.planning.emulator_model import EmulatorModel, Snapshot


class _Restorable(Protocol):
    """The part of :class:`torchrl_reg.envs.Restorable` and ``gymnasium.vector.VectorEnv`` that is needed."""

    num_envs: int
    single_action_space: gymnasium.Space

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]: ...
    def step(self, actions: Any) -> tuple[Any, ...]: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, snapshot: dict[str, Any]) -> bool: ...


class VectorModel(EmulatorModel):
    """Plans in one copy of a vector environment of :mod:`torchrl_reg.envs`, restored to the states ``[M]`` wanted.

    Rewards are in the environment's reward units. Its random generator is a part of the state: a search knows how the
    dice will fall. Where the environment truncates an episode the model ends it, so give it a limit beyond every
    search; the caller counts the steps.

    Args:
        env: the environment, of one copy; nobody else may use it.

    Raises:
        ValueError: it holds several copies, cannot be restored, or its actions are continuous.

    Example:
        >>> from torchrl_reg.envs import MinAtar
        >>> settings = {"sticky_actions": 0.0, "minimal_actions": True, "difficulty_ramping": True}
        >>> model = VectorModel(MinAtar(1, game="breakout", max_episode_frames=10**9, **settings))
        >>> reward, state, terminated = model.step(model.reset(num_states=2, seed=0), torch.tensor([0, 1]))
        >>> model.observation(state).shape
        torch.Size([2, 4, 10, 10])
    """

    def __init__(self, env: _Restorable) -> None:
        name = type(env).__name__
        if not (hasattr(env, "snapshot") and hasattr(env, "restore")):
            raise ValueError(f"env must be one that can be restored from a snapshot, got {name}.")
        if not isinstance(env.single_action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"env must have discrete actions, got {name} with {env.single_action_space}.")
        if env.num_envs != 1:
            raise ValueError(f"env must hold one copy, got {name} with {env.num_envs}.")
        super().__init__(int(env.single_action_space.n))
        self._env = env

    def _start(self, seed: int) -> Snapshot:
        seen, _ = self._env.reset(seed=seed)
        return Snapshot(self._env.snapshot(), torch.from_numpy(seen[0].copy()))

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        self._env.restore(snapshot.saved)
        seen, rewards, terminated, truncated, _ = self._env.step(np.array([action]))
        reward = float(rewards[0])
        following = Snapshot(self._env.snapshot(), torch.from_numpy(seen[0].copy()), reward)
        return reward, following, bool(terminated[0] | truncated[0])
