"""Simulators that can be saved and restored as models to plan in: a state is the number of a snapshot.

Shapes: ``M`` states, ``*O`` one observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """A simulator at one moment, between two steps.

    Args:
        saved: what brings the simulator back there.
        observation: what is seen there ``[*O]``; None if nothing needs it.
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
        """What is seen in the states ``[M, *O]``."""
        seen = [self._snapshots[number].observation for number in state.tolist()]
        if any(image is None for image in seen):
            raise ValueError("observe must be True for a model whose states are looked at, got False.")
        return torch.stack(seen)  # type: ignore[arg-type]

    def raw_reward(self, state: Tensor) -> Tensor:
        """Rewards of the steps that led to the states ``[M]``, before any clipping."""
        return torch.tensor([self._snapshots[n].raw_reward for n in state.tolist()], dtype=torch.float64)

    def mark(self) -> int:
        """What :meth:`release` goes back to."""
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
