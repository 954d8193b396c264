"""The protocol of environments with a state to save, and vector environments restored by replaying their actions."""

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

    A checkpoint stores the result of :meth:`snapshot`, which is called when all finished episodes have been reset.
    :meth:`restore` is called in another process, on an environment built with the same arguments and reset once. The
    state of transforms around a TorchRL environment is saved separately: their ``state_dict()`` and the tensordict
    that is carried from step to step (running returns, step counts).
    """

    def snapshot(self) -> dict[str, Any]:
        """The complete state, random generators included, as plain data that later steps do not modify.

        Plain data are numbers, strings, ``None``, NumPy arrays, tensors, and lists, tuples and dicts of them. The state
        of a NumPy generator is such a dict: ``generator.bit_generator.state``.
        """
        ...

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Restores a :meth:`snapshot`; False if later steps would not be the same, bit for bit."""
        ...


class RecordedVectorEnv(SyncVectorEnv):
    """Copies of one environment, restored by repeating the last reset of each and replaying the actions since.

    The environment must be deterministic: a reset must depend only on its seed or, without one, on the state of
    ``np_random``, and the steps on both and the actions. Resets are left to the caller
    (``AutoresetMode.DISABLED``).

    Args:
        make: returns one copy.
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
        # Per copy: the seed or the generator state of its last reset, and the actions since.
        self._origin: list[Any] = [None] * num_envs
        self._actions_since_reset: list[list[Any]] = [[] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = seeds_of(seed, self.num_envs)
        mask = (options or {}).get("reset_mask")
        for i in range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist():
            given = seeds[i]
            state = self.envs[i].unwrapped.np_random.bit_generator.state
            self._origin[i], self._actions_since_reset[i] = state if given is None else int(given), []
        return super().reset(seed=list(seeds), options=options)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        for past, action in zip(self._actions_since_reset, np.array(actions), strict=True):
            past.append(action)
        return super().step(actions)

    def snapshot(self) -> dict[str, Any]:
        """The origin of each episode, its actions, and the current observations, which :meth:`restore` compares."""
        return {
            "origin": list(self._origin),
            "actions": [np.array(past) for past in self._actions_since_reset],
            "observation": np.array(self._observations),
        }

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Replays every episode; False if the observations differ, as on a processor with other rounding."""
        self._origin = list(snapshot["origin"])
        self._actions_since_reset = [list(actions) for actions in snapshot["actions"]]
        episodes = zip(self.envs, self._origin, self._actions_since_reset, strict=True)
        observations = [_replay(*episode) for episode in episodes]
        self._env_obs = observations
        self._observations = np.stack(observations).astype(self._observations.dtype)
        for flags in (self._terminations, self._truncations, self._autoreset_envs):
            flags[:] = False
        return bool(np.array_equal(self._observations, snapshot["observation"]))


def _replay(env: gymnasium.Env, origin: Any, actions: Sequence[Any]) -> Any:
    """Resets ``env`` from ``origin``, plays ``actions``, and returns the last observation."""
    seed = origin if isinstance(origin, int) else None
    if seed is None:
        env.unwrapped.np_random.bit_generator.state = origin
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observation, *_ = env.step(action)
    return observation
