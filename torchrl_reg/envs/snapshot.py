"""Environments whose state a checkpoint can hold, and vectors of copies that are restored by replaying their past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

# How many rows that no copy needs any more pile up before their memory is freed.
_KEPT_ROWS = 4_096


@runtime_checkable
class Restorable(Protocol):
    """A ``gymnasium.vector.VectorEnv`` or a TorchRL ``EnvBase`` that can be restored to an earlier state.

    A checkpoint calls :meth:`snapshot` after all finished episodes have been reset, stores what it gets, and hands it
    to :meth:`restore` of an environment built with the same arguments, in another process, which was reset since.
    What the transforms around a TorchRL environment hold is stored apart: ``state_dict()`` and the tensordict that
    is carried from step to step (running returns, step counts).
    """

    def snapshot(self) -> dict[str, Any]:
        """Everything that determines the future, random generators included, in plain data that later steps leave
        alone.

        Plain data are numbers, strings, ``None``, NumPy arrays, tensors, and lists, tuples and dicts of them. The
        state of a NumPy generator is such a dict: ``generator.bit_generator.state``.
        """
        ...

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Restores a :meth:`snapshot`; False if the future would not be the same, bit for bit."""
        ...


class RecordedVectorEnv(SyncVectorEnv):
    """Copies of one environment, each restored from what its last reset drew from and the actions since.

    Resets are left to the caller (gymnasium's ``DISABLED`` mode). For environments that are deterministic given
    these two: what a reset leaves behind must be a function of its seed or, without one, of the state of
    ``np_random``. Restoring a copy takes as many steps as its episode has had.

    Args:
        make: builds one copy.
        num_envs: number of copies N.

    >>> env = RecordedVectorEnv(lambda: gymnasium.make("CartPole-v1"), 2)
    >>> _ = env.reset(seed=3), env.step(np.array([1, 0]))
    >>> other = RecordedVectorEnv(lambda: gymnasium.make("CartPole-v1"), 2)
    >>> _ = other.reset()
    >>> other.restore(env.snapshot())
    True
    >>> bool((other.step(np.array([1, 1]))[0] == env.step(np.array([1, 1]))[0]).all())
    True
    """

    def __init__(self, make: Callable[[], gymnasium.Env], num_envs: int) -> None:
        super().__init__([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        # Actions [N, ...] of every step, and by copy the row at which its episode starts and what its reset drew from.
        self._record: list[np.ndarray] = []
        self._first_row = [0] * num_envs
        self._origin: list[Any] = [None] * num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        mask = (options or {}).get("reset_mask")
        chosen = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        for i in chosen:
            random = self.envs[i].unwrapped.np_random
            self._origin[i] = random.bit_generator.state if seeds[i] is None else int(seeds[i])  # type: ignore[arg-type]
            self._first_row[i] = len(self._record)
        self._forget(min(self._first_row))
        return super().reset(seed=list(seeds), options=options)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self._record.append(np.array(actions))
        return super().step(actions)

    def snapshot(self) -> dict[str, Any]:
        """The origin of each episode, the actions since, and the observations they led to, as a check."""
        oldest = min(self._first_row)
        record = self._record[oldest:]
        return {
            "origin": list(self._origin),
            "first_row": [row - oldest for row in self._first_row],
            "actions": np.stack(record) if record else None,
            "observation": np.array(self._observations),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Plays every episode again; False if the observations differ, as on a machine that computes differently."""
        actions = [] if snapshot["actions"] is None else list(snapshot["actions"])
        for i, (origin, first) in enumerate(zip(snapshot["origin"], snapshot["first_row"], strict=True)):
            self._env_obs[i] = _replayed(self.envs[i], origin, [row[i] for row in actions[first:]])
        self._observations = np.stack(self._env_obs).astype(self._observations.dtype)  # type: ignore[arg-type]
        for flags in (self._terminations, self._truncations, self._autoreset_envs):
            flags[:] = False
        self._record, self._first_row = actions, list(snapshot["first_row"])
        self._origin = list(snapshot["origin"])
        return bool(np.array_equal(self._observations, snapshot["observation"]))

    def _forget(self, rows: int) -> None:
        if rows >= _KEPT_ROWS:
            del self._record[:rows]
            self._first_row = [row - rows for row in self._first_row]


def _replayed(env: gymnasium.Env, origin: Any, actions: Sequence[Any]) -> Any:
    """The observation that ``actions`` lead to after the reset that drew from ``origin``."""
    seed = origin if isinstance(origin, int) else None
    if seed is None:
        env.unwrapped.np_random.bit_generator.state = origin
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observation, *_ = env.step(action)
    return observation
