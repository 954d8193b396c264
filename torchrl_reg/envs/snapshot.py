"""Environments whose state a checkpoint can hold, and vectors of copies that are restored by replaying their past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from torchrl_reg.envs.batched import seeds_of


@runtime_checkable
class Restorable(Protocol):
    """A ``gymnasium.vector.VectorEnv`` or a TorchRL ``EnvBase`` that can be restored to an earlier state.

    A checkpoint calls :meth:`snapshot` after all finished episodes have been reset, stores what it gets, and hands it
    to :meth:`restore` of an environment built with the same arguments, in another process, which was reset since.
    What the transforms around a TorchRL environment hold is stored apart: ``state_dict()`` and the tensordict that
    is carried from step to step (running returns, step counts).
    """

    def snapshot(self) -> dict[str, Any]:
        """Everything that determines the future, random generators included, in plain data.

        Later steps leave it alone. Plain data are numbers, strings, ``None``, NumPy arrays, tensors, and lists, tuples
        and dicts of them. The state of a NumPy generator is such a dict: ``generator.bit_generator.state``.
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
        # By copy, what its last reset drew from and the actions since.
        self._origin: list[Any] = [None] * num_envs
        self._played: list[list[Any]] = [[] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = seeds_of(seed, self.num_envs)
        mask = (options or {}).get("reset_mask")
        for i in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            given = seeds[i]
            state = self.envs[i].unwrapped.np_random.bit_generator.state
            self._origin[i], self._played[i] = state if given is None else int(given), []
        return super().reset(seed=list(seeds), options=options)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        for played, action in zip(self._played, np.array(actions), strict=True):
            played.append(action)
        return super().step(actions)

    def snapshot(self) -> dict[str, Any]:
        """The origin of each episode, the actions since, and the observations they led to, as a check."""
        return {
            "origin": list(self._origin),
            "actions": [np.array(played) for played in self._played],
            "observation": np.array(self._observations),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Plays every episode again; False if the observations differ, as on a machine that computes differently."""
        self._origin, self._played = list(snapshot["origin"]), [list(actions) for actions in snapshot["actions"]]
        replayed = [_replayed(*episode) for episode in zip(self.envs, self._origin, self._played, strict=True)]
        self._env_obs = replayed
        self._observations = np.stack(replayed).astype(self._observations.dtype)
        for flags in (self._terminations, self._truncations, self._autoreset_envs):
            flags[:] = False
        return bool(np.array_equal(self._observations, snapshot["observation"]))


def _replayed(env: gymnasium.Env, origin: Any, actions: Sequence[Any]) -> Any:
    """The observation that ``actions`` lead to after the reset that drew from ``origin``."""
    seed = origin if isinstance(origin, int) else None
    if seed is None:
        env.unwrapped.np_random.bit_generator.state = origin
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observation, *_ = env.step(action)
    return observation
