"""A gymnasium environment that can be copied, as a model to plan in."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import torch

from torchrl_reg.planning.emulator_model import EmulatorModel, Snapshot


class GymModel(EmulatorModel):
    """Plans in copies (``copy.deepcopy``) of a gymnasium environment with discrete actions, at states ``[M]``, int64.

    Its random generator is copied with it: a search in a stochastic environment sees the exact outcomes to come. Time
    limits do not end an episode of the model; the caller counts the steps.

    Args:
        env: the environment; it is copied and not used itself.

    Raises:
        ValueError: if its actions are continuous, its observations are no arrays (a Dict), it cannot be copied, or its
            copies are not independent.

    Example:
        >>> model = GymModel(gymnasium.make("CartPole-v1"))
        >>> state = model.reset(num_states=2, seed=0)
        >>> reward, state, terminated = model.step(state, torch.tensor([0, 1]))
        >>> reward.tolist(), model.observation(state).shape
        ([1.0, 1.0], torch.Size([2, 4]))
    """

    def __init__(self, env: gymnasium.Env) -> None:
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"env must have discrete actions, got {name} with {env.action_space}.")
        space = getattr(env, "observation_space", None)
        if space is not None and space.shape is None:
            raise ValueError(
                "env must give arrays as observations (FlattenObservation of gymnasium.wrappers makes one of several), "
                f"got {name} with {space}."
            )
        try:
            self._env = copy.deepcopy(env)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
            raise ValueError(f"env must be one that copy.deepcopy can clone, got {name} ({reason}).") from None
        super().__init__(int(env.action_space.n))
        self._first = int(env.action_space.start)
        self._check_independence(name)

    def _start(self, seed: int) -> Snapshot:
        env = copy.deepcopy(self._env)
        observation, _ = env.reset(seed=seed)
        return Snapshot(env, torch.as_tensor(np.asarray(observation)).clone())

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        env = copy.deepcopy(snapshot.saved)
        observation, reward, terminated, _, _ = env.step(self._first + action)
        seen = torch.as_tensor(np.asarray(observation)).clone()
        return float(reward), Snapshot(env, seen, float(reward)), bool(terminated)

    def _check_independence(self, name: str) -> None:
        """Copies that share hidden state diverge when they are stepped one after the other."""
        start = self._start(0)
        steps: list[tuple[Any, ...]] = []
        for _ in range(2):
            reward, snapshot, terminated = self._advance(start, self.num_actions - 1)
            assert snapshot.observation is not None
            steps.append((reward, terminated, snapshot.observation.tolist()))
        if repr(steps[0]) != repr(steps[1]):
            raise ValueError(
                f"env must be one whose copies are independent, got {name}, two copies of which reached different "
                "states by the same action."
            )
