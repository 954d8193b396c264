"""Environments whose copies step in one call: seeds, time limits, resets and snapshots, the same for all of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from torchrl_reg.envs.settings import EnvError


class BatchedEnv(VectorEnv):
    """``N`` copies of an environment with arrays for state, equal number by number to a ``SyncVectorEnv`` of singles.

    Copy ``i`` draws from a generator of its own, as a single environment does: ``reset(seed=s)`` seeds it with ``s +
    i``, a list gives each its seed, later resets go on with it. An episode is *truncated* after ``max_episode_frames``
    steps, as by gymnasium's ``TimeLimit``. Finished copies are left to the caller (``AutoresetMode.DISABLED``):
    ``reset(options={"reset_mask": mask})`` starts the next episodes of those in ``mask`` (bool ``[N]``).

    :meth:`snapshot` and :meth:`restore` give and take all that the future depends on, generators included. Arrays
    returned by :meth:`step` and :meth:`reset` are never written to again.

    A subclass says how copy ``i`` begins an episode (:meth:`_begin`) and how all copies advance (:meth:`_advance`). It
    names the arrays of its state in ``arrays``; what else it holds is in :meth:`_held` and :meth:`_hold`.

    Args:
        num_envs: number of copies N.
        observation_space, action_space: those of one copy.
        max_episode_frames: steps after which an episode is truncated.
    """

    #: Attributes, without their underscore, that are arrays over all copies and change from step to step.
    arrays: tuple[str, ...] = ("observation", "elapsed", "ended", "seeded")

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    autoreset_mode = AutoresetMode.DISABLED

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.spaces.Box,
        action_space: gymnasium.Space,
        max_episode_frames: int,
    ) -> None:
        self.num_envs = num_envs
        self.max_episode_frames = max_episode_frames
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._observation = np.zeros((num_envs, *observation_space.shape), observation_space.dtype)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._ended = np.ones(num_envs, np.bool_)  # until the first reset
        self._seeded = np.zeros(num_envs, np.bool_)
        self._generators = [np.random.default_rng() for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode in the masked (default: all) copies; returns the observations ``[N, ...]`` of all."""
        mask = (options or {}).get("reset_mask")
        rows = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        seeds = seeds_of(seed, self.num_envs)
        observation = self._observation.copy()
        for i in rows:
            if seeds[i] is not None or not self._seeded[i]:
                self._seed(i, seeds[i])
                self._seeded[i] = True
            observation[i] = self._begin(i)
            self._elapsed[i] = 0
            self._ended[i] = False
        self._observation = observation
        return observation, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observations ``[N, ...]``, rewards (float32), terminated and truncated (bool), each ``[N]``, and ``{}``.

        Raises:
            EnvError: a copy has finished and was not reset.
        """
        if self._ended.any():
            raise EnvError(
                f"step must follow a reset of the finished copies {np.flatnonzero(self._ended).tolist()}, got an "
                "action for them."
            )
        observation, reward, terminated = self._advance(actions)
        self._observation = observation
        self._elapsed += 1
        truncated = self._elapsed >= self.max_episode_frames
        self._ended = terminated | truncated
        return observation, reward, terminated, truncated, {}

    def snapshot(self) -> dict[str, Any]:
        """Everything that the future depends on, see :class:`~torchrl_reg.envs.Restorable`."""
        return {name: getattr(self, f"_{name}").copy() for name in self.arrays} | {"copies": self._held()}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Continues from where :meth:`snapshot` was taken.

        Raises:
            EnvError: it is that of another number of copies.
        """
        if len(snapshot["elapsed"]) != self.num_envs:
            raise EnvError(f"snapshot must be that of {self.num_envs} copies, got that of {len(snapshot['elapsed'])}.")
        for name in self.arrays:
            setattr(self, f"_{name}", snapshot[name].copy())
        self._hold(snapshot["copies"])
        return True

    def _seed(self, i: int, seed: int | None) -> None:
        """Gives copy ``i`` a fresh generator: a function of ``seed``, or unpredictable for None."""
        self._generators[i], _ = seeding.np_random(seed)

    @abstractmethod
    def _begin(self, i: int) -> np.ndarray:
        """Puts copy ``i`` at the start of an episode and returns its first observation."""

    @abstractmethod
    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations (a fresh array), float32 rewards ``[N]`` and which copies terminated, bool ``[N]``."""

    def _held(self) -> dict[str, Any]:
        """All of a :meth:`snapshot` but the arrays: plain data that later steps leave alone."""
        return {"generators": [generator.bit_generator.state for generator in self._generators]}

    def _hold(self, held: dict[str, Any]) -> None:
        """Takes back what :meth:`_held` gave."""
        for generator, state in zip(self._generators, held["generators"], strict=True):
            generator.bit_generator.state = state


def seeds_of(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """The seed of each copy: consecutive ones from an int on, as gymnasium's vector environments take it.

    Raises:
        EnvError: another number of seeds.
    """
    seeds = [None] * num_envs if seed is None else seed
    seeds = range(int(seeds), int(seeds) + num_envs) if isinstance(seeds, int | np.integer) else seeds
    if len(seeds) != num_envs:
        raise EnvError(f"seed must be an int or {num_envs} of them, got {len(seeds)}.")
    return seeds
