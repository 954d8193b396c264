"""Simulators that can be saved and restored, or copied, as models to plan in: a state is the number of a snapshot.

Shapes: ``M`` states, ``*O`` one observation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """A simulator at one moment, between two steps.

    Args:
        saved: the state that brings the simulator back there.
        observation: the observation there ``[*O]``; None if nothing needs it.
        raw_reward: the reward of the step that led there, before any clipping.
    """

    saved: Any
    observation: Tensor | None
    raw_reward: float = 0.0


class EmulatorModel:
    """Keeps snapshots of a simulator and names them by numbers, so that a search sees tensors of states ``[M]``, int64.

    Rewards ``[M]`` are in reward units. Subclasses save, restore and step one simulator (:meth:`_start`,
    :meth:`_advance`), or several (:meth:`_begin`, :meth:`_advance_all`). Snapshots stay until they are released: a
    search is followed by ``model.release(mark)`` of a ``mark = model.mark()`` taken before it, as
    :class:`torchrl_reg.planning.SearchActor` does.

    Args:
        num_actions: number of actions A.
        stochastic: whether a step from a restored state may differ from the last one.
    """

    num_outcomes = 1
    #: Whether snapshots hold observations.
    observe = True

    def __init__(self, num_actions: int, *, stochastic: bool = False) -> None:
        self.num_actions, self.stochastic = num_actions, stochastic
        self._snapshots: dict[int, Snapshot] = {}
        self._next = 0

    def reset(self, num_states: int, seed: int) -> Tensor:
        """First states of ``num_states`` episodes ``[M]``; the i-th is a function of ``seed + i``."""
        return torch.tensor([self._keep(each) for each in self._begin(range(seed, seed + num_states))])

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        rewards, states, ends = [], [], []
        snapshots = [self._snapshots[number] for number in state.tolist()]
        for reward, snapshot, terminated in self._advance_all(snapshots, action.tolist()):
            rewards.append(reward)
            states.append(self._keep(snapshot))
            ends.append(terminated)
        ended = torch.tensor(ends, dtype=torch.bool)
        return torch.tensor(rewards, dtype=torch.float64), torch.tensor(states, dtype=torch.int64), ended

    def observation(self, state: Tensor) -> Tensor:
        """Observations in the states ``[M, *O]``."""
        seen = [self._snapshots[number].observation for number in state.tolist()]
        if any(image is None for image in seen):
            raise ValueError("observe must be True for a model whose states are looked at, got False.")
        return torch.stack(seen)  # type: ignore[arg-type]

    def raw_reward(self, state: Tensor) -> Tensor:
        """Rewards of the steps that led to the states ``[M]``, before any clipping."""
        return torch.tensor([self._snapshots[n].raw_reward for n in state.tolist()], dtype=torch.float64)

    def mark(self) -> int:
        """The moment that :meth:`release` goes back to."""
        return self._next

    def release(self, mark: int, keep: Tensor | None = None) -> None:
        """Forgets the snapshots taken since ``mark``, but for those in ``keep [M]``."""
        kept = set() if keep is None else set(keep.tolist())
        for number in [n for n in self._snapshots if n >= mark and n not in kept]:
            self._forget(self._snapshots.pop(number))

    @property
    def num_snapshots(self) -> int:
        """Number of snapshots currently held."""
        return len(self._snapshots)

    def _keep(self, snapshot: Snapshot) -> int:
        number, self._next = self._next, self._next + 1
        self._snapshots[number] = snapshot
        return number

    def _begin(self, seeds: Sequence[int]) -> list[Snapshot]:
        """The first states of several episodes."""
        return [self._start(seed) for seed in seeds]

    def _advance_all(self, snapshots: Sequence[Snapshot], actions: Sequence[int]) -> list[tuple[float, Snapshot, bool]]:
        """Reward, state and termination one action after each of ``snapshots``."""
        return [self._advance(*each) for each in zip(snapshots, actions, strict=True)]

    def _forget(self, snapshot: Snapshot) -> None:
        """Is called with snapshots that are no longer needed."""

    def _start(self, seed: int) -> Snapshot:
        """The first state of an episode."""
        raise NotImplementedError

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        """Reward, state and termination one action after ``snapshot``."""
        raise NotImplementedError


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
        return Snapshot(env, _tensor(env.reset(seed=seed)[0]))

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        env = copy.deepcopy(snapshot.saved)
        observation, reward, terminated, _, _ = env.step(self._first + action)
        return float(reward), Snapshot(env, _tensor(observation), float(reward)), bool(terminated)

    def _check_independence(self, name: str) -> None:
        """Copies that share hidden state diverge when they are stepped one after the other."""
        start, steps = self._start(0), []
        for _ in range(2):
            reward, snapshot, terminated = self._advance(start, self.num_actions - 1)
            steps.append(repr((reward, terminated, np.asarray(snapshot.observation).tolist())))
        if steps[0] != steps[1]:
            raise ValueError(
                f"env must be one whose copies are independent, got {name}, two copies of which reached different "
                "states by the same action."
            )


class VectorModel(EmulatorModel):
    """Plans in one copy of a vector environment of :mod:`torchrl_reg.envs`, restored to the states ``[M]`` wanted.

    Rewards are in the environment's reward units. Its random generator is a part of the state: a search knows how the
    dice will fall. Where the environment truncates an episode the model ends it, so give it a limit beyond every
    search; the caller counts the steps.

    Args:
        env: the environment, a :class:`torchrl_reg.envs.Restorable` of one copy; nobody else may use it.

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

    def __init__(self, env: Any) -> None:
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
        observation, _ = self._env.reset(seed=seed)
        return Snapshot(self._env.snapshot(), _tensor(observation[0]))

    def _advance(self, snapshot: Snapshot, action: int) -> tuple[float, Snapshot, bool]:
        self._env.restore(snapshot.saved)
        observation, (reward,), (terminated,), (truncated,), _ = self._env.step(np.array([action]))
        after = Snapshot(self._env.snapshot(), _tensor(observation[0]), float(reward))
        return float(reward), after, bool(terminated or truncated)


def _tensor(observation: Any) -> Tensor:
    """A copy of an observation, which its environment may overwrite."""
    return torch.tensor(np.asarray(observation))
