"""Environments whose copies step in one call, among them CartPole, Acrobot, Pendulum and MountainCar of gymnasium.

The operations are those of gymnasium's single environments, in the same order and precision, so results are equal bit
for bit. gymnasium vectorizes only CartPole, with automatic resets and one generator for all copies.

Shapes: ``N`` copies.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import (
    AcrobotEnv,
    CartPoleEnv,
    Continuous_MountainCarEnv,
    MountainCarEnv,
    PendulumEnv,
)
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class BatchedEnv(VectorEnv):
    """``N`` copies of an environment, their state in arrays, with the same results as a ``SyncVectorEnv``, bit for bit.

    Each copy has its own generator: ``reset(seed=s)`` seeds copy ``i`` with ``s + i``, a list gives one seed per copy,
    and later resets continue the generators. An episode is *truncated* after ``max_episode_frames`` steps, as by
    gymnasium's ``TimeLimit``. Resets are left to the caller (``AutoresetMode.DISABLED``):
    ``reset(options={"reset_mask": mask})`` starts a new episode in the copies in ``mask`` (bool ``[N]``).

    :meth:`snapshot` and :meth:`restore` save and load the complete state, generators included. Arrays returned by
    :meth:`step` and :meth:`reset` are never modified afterwards.

    Subclasses implement :meth:`_begin` (one copy starts an episode) and :meth:`_advance` (all copies take a step), and
    list the arrays of their state in ``arrays``; other state goes through :meth:`_extra_state` and
    :meth:`_set_extra_state`.

    Args:
        num_envs: number of copies N.
        observation_space, action_space: those of one copy.
        max_episode_frames: steps after which an episode is truncated.
    """

    #: Names, without the underscore, of the attributes that hold the state of all copies.
    arrays: tuple[str, ...] = ("observation", "elapsed", "ended", "seeded")

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}
    autoreset_mode = AutoresetMode.DISABLED

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.spaces.Box,
        action_space: gymnasium.Space[Any],
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
        """Starts an episode in the masked copies (default: all); returns observations ``[N, ...]`` of all copies."""
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
            ValueError: a finished copy has not been reset.
        """
        if np.count_nonzero(self._ended):  # 10 times as fast as any()
            finished = np.flatnonzero(self._ended).tolist()
            raise ValueError(f"copies {finished} must be reset before the next step, got an action for them.")
        observation, reward, terminated = self._advance(actions)
        self._observation = observation
        self._elapsed += 1
        truncated = self._elapsed >= self.max_episode_frames
        self._ended = terminated | truncated
        return observation, reward, terminated, truncated, {}

    def snapshot(self) -> dict[str, Any]:
        """The complete state, see :class:`~torchrl_reg.envs.Restorable`."""
        return {name: getattr(self, f"_{name}").copy() for name in self.arrays} | {"copies": self._extra_state()}

    def restore(self, snapshot: dict[str, Any]) -> bool:
        """Loads the state of a :meth:`snapshot`.

        Raises:
            ValueError: a snapshot of another number of copies.
        """
        if len(snapshot["elapsed"]) != self.num_envs:
            raise ValueError(
                f"snapshot must be that of {self.num_envs} copies, got that of {len(snapshot['elapsed'])}."
            )
        for name in self.arrays:
            setattr(self, f"_{name}", snapshot[name].copy())
        self._set_extra_state(snapshot["copies"])
        return True

    def _seed(self, i: int, seed: int | None) -> None:
        """Gives copy ``i`` a new generator, seeded with ``seed`` or, for None, from the operating system."""
        self._generators[i], _ = seeding.np_random(seed)

    @abstractmethod
    def _begin(self, i: int) -> np.ndarray:
        """Starts an episode in copy ``i`` and returns its first observation."""

    @abstractmethod
    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations (a new array), float32 rewards ``[N]`` and bool ``terminated [N]`` after ``actions``."""

    def _extra_state(self) -> dict[str, Any]:
        """The state that is not in ``arrays``, as plain data that later steps do not modify."""
        return {"generators": [generator.bit_generator.state for generator in self._generators]}

    def _set_extra_state(self, state: dict[str, Any]) -> None:
        """Loads the state that :meth:`_extra_state` returned."""
        for generator, generator_state in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = generator_state


def seeds_of(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """The seed of each copy: ``seed``, ``seed + 1``, ... for an int, as in gymnasium's vector environments.

    Raises:
        ValueError: a sequence of another length than ``num_envs``.
    """
    seeds = [None] * num_envs if seed is None else seed
    seeds = range(int(seeds), int(seeds) + num_envs) if isinstance(seeds, int | np.integer) else seeds
    if len(seeds) != num_envs:
        raise ValueError(f"seed must be an int or {num_envs} of them, got {len(seeds)}.")
    return seeds


class ControlEnv(BatchedEnv):
    """``N`` copies of a classic control task with a state of ``D`` numbers, float64 ``[D, N]``."""

    arrays = (*BatchedEnv.arrays, "state")
    single: type[gymnasium.Env]
    size: int

    def __init__(self, num_envs: int, *, max_episode_frames: int) -> None:
        single: Any = self.single()
        super().__init__(num_envs, single.observation_space, single.action_space, max_episode_frames)
        self._constants = single
        self._state = np.zeros((self.size, num_envs))

    @staticmethod
    def joined(members: Sequence[ControlEnv]) -> ControlEnv:
        """One environment with the copies of all ``members`` (of one class); :meth:`part` writes their states back."""
        joint = copy(members[0])
        joint.num_envs = sum(member.num_envs for member in members)
        joint._generators = sum((member._generators for member in members), [])
        for name in (f"_{name}" for name in joint.arrays):  # copies: last dimension of the state, first of the others
            setattr(joint, name, np.concatenate([getattr(m, name) for m in members], -(name == "_state")))
        return joint

    def part(self, members: Sequence[ControlEnv]) -> None:
        """Writes the current state of the copies back to the ``members`` that were :meth:`joined`."""
        start = 0
        for member in members:
            rows = slice(start, start := start + member.num_envs)
            member._generators = self._generators[rows]
            for name in (f"_{name}" for name in self.arrays):
                setattr(member, name, getattr(self, name)[..., rows] if name == "_state" else getattr(self, name)[rows])


class CartPole(ControlEnv):
    """CartPole-v1; the state is ``(x, angle, their velocities)``."""

    single, size = CartPoleEnv, 4

    def __init__(self, num_envs: int, *, max_episode_frames: int) -> None:
        super().__init__(num_envs, max_episode_frames=max_episode_frames)
        self._limits = np.array([[self._constants.x_threshold], [self._constants.theta_threshold_radians]])

    def _begin(self, i: int) -> np.ndarray:
        start = self._generators[i].uniform(-0.05, 0.05, 4)
        self._state[:, i] = start[[0, 2, 1, 3]]
        return start

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        c = self._constants
        places, velocities = self._state[:2], self._state[2:]
        angle, angle_velocity = places[1], velocities[1]
        force = np.where(actions == 1, c.force_mag, -c.force_mag)
        cos, sin = np.cos(angle), np.sin(angle)
        temp = (force + c.polemass_length * np.square(angle_velocity) * sin) / c.total_mass
        accelerations = np.empty_like(velocities)
        accelerations[1] = (c.gravity * sin - cos * temp) / (
            c.length * (4.0 / 3.0 - c.masspole * np.square(cos) / c.total_mass)
        )
        accelerations[0] = temp - c.polemass_length * accelerations[1] * cos / c.total_mass
        places += c.tau * velocities
        velocities += c.tau * accelerations
        observation = np.empty((self.num_envs, 4), np.float32)
        observation[:, ::2], observation[:, 1::2] = places.T, velocities.T
        beyond = np.abs(places) > self._limits
        return observation, np.ones(self.num_envs, np.float32), beyond[0] | beyond[1]


class Acrobot(ControlEnv):
    """Acrobot-v1; the state is ``(theta1, theta2, their velocities)``."""

    single, size = AcrobotEnv, 4
    _max_velocities = np.array([[AcrobotEnv.MAX_VEL_1], [AcrobotEnv.MAX_VEL_2]])
    _torques = np.array(AcrobotEnv.AVAIL_TORQUE)

    def _begin(self, i: int) -> np.ndarray:
        # The single environment is in float32 until its first step.
        start = self._generators[i].uniform(-0.1, 0.1, 4).astype(np.float32)
        self._state[:, i] = start
        return _acrobot_observation(start)

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        torque, dt = self._torques[actions], AcrobotEnv.dt
        start = self._state
        k1 = _acrobot_derivative(start, torque)
        k2 = _acrobot_derivative(start + dt / 2.0 * k1, torque)
        k3 = _acrobot_derivative(start + dt / 2.0 * k2, torque)
        k4 = _acrobot_derivative(start + dt * k3, torque)
        state = start + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles = state[:2]
        while (above := angles > np.pi).any():
            angles[above] -= 2 * np.pi
        while (below := angles < -np.pi).any():
            angles[below] += 2 * np.pi
        state[2:] = np.clip(state[2:], -self._max_velocities, self._max_velocities)
        self._state = state
        terminated = -np.cos(state[0]) - np.cos(state[1] + state[0]) > 1.0
        return _acrobot_observation(state), np.where(terminated, np.float32(0), np.float32(-1)), terminated


def _acrobot_observation(state: np.ndarray) -> np.ndarray:
    """float32 ``[N, 6]`` of ``state [4, N]``, or ``[6]`` of ``[4]``."""
    observation = np.empty((*state.shape[1:], 6), np.float32)
    observation[..., :4:2], observation[..., 1:4:2] = np.cos(state[:2]).T, np.sin(state[:2]).T
    observation[..., 4:] = state[2:].T
    return observation


def _acrobot_derivative(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """Time derivative ``[4, N]`` of ``state``, all masses and lengths 1, centres of mass at .5 ("book" equations)."""
    theta1, theta2, dtheta1, dtheta2 = state
    cos2, sin2 = np.cos(theta2), np.sin(theta2)
    d1 = 0.25 + (1.25 + cos2) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos2) + 1.0
    phi2 = 0.5 * 9.8 * np.cos(theta1 + theta2 - np.pi / 2.0)
    phi1 = (
        -0.5 * _power_2(dtheta2) * sin2
        - 2 * 0.5 * dtheta2 * dtheta1 * sin2
        + (0.5 + 1.0) * 9.8 * np.cos(theta1 - np.pi / 2)
        + phi2
    )
    ddtheta2 = (torque + d2 / d1 * phi1 - 0.5 * _power_2(dtheta1) * sin2 - phi2) / (0.25 + 1.0 - _power_2(d2) / d1)
    ddtheta1 = -(d2 * ddtheta2 + phi1) / d1
    return np.stack((dtheta1, dtheta2, ddtheta1, ddtheta2))


def _power_2(x: np.ndarray) -> np.ndarray:
    """``x ** 2`` by the C library's pow, as for float64 scalars: the last bit may differ from that of ``x * x``."""
    return np.float_power(x, 2.0)


class MountainCar(ControlEnv):
    """MountainCar-v0; the state is ``(position, velocity)``."""

    single, size = MountainCarEnv, 2

    def _begin(self, i: int) -> np.ndarray:
        start = np.array([self._generators[i].uniform(-0.6, -0.4), 0.0])
        self._state[:, i] = start
        return start

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        c = self._constants
        position, velocity = self._state
        slope = np.array([math.cos(x) for x in (3 * position).tolist()])  # not np.cos, whose last bit may differ
        velocity = velocity + ((actions - 1) * c.force + slope * -c.gravity)
        velocity = np.clip(velocity, -c.max_speed, c.max_speed)
        position = np.clip(position + velocity, c.min_position, c.max_position)
        velocity[(position == c.min_position) & (velocity < 0)] = 0.0
        self._state = np.stack((position, velocity))
        terminated = (position >= c.goal_position) & (velocity >= c.goal_velocity)
        return self._state.T.astype(np.float32), np.full(self.num_envs, -1.0, np.float32), terminated


class Pendulum(ControlEnv):
    """Pendulum-v1; the state is ``(angle, its velocity)``."""

    single, size = PendulumEnv, 2

    def _begin(self, i: int) -> np.ndarray:
        high = np.array([np.pi, 1.0])
        start = self._generators[i].uniform(-high, high)
        self._state[:, i] = start
        return _pendulum_observation(start)

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle, velocity = self._state
        torque = np.clip(actions, -2.0, 2.0)[:, 0]
        effort = np.array([value**2 for value in torque])  # float32 scalars as in gymnasium, see _power_2
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        costs = _power_2(wrapped) + 0.1 * _power_2(velocity) + 0.001 * effort
        velocity = velocity + (15.0 * np.sin(angle) + 3.0 * torque) * 0.05
        velocity = np.clip(velocity, -8, 8)
        self._state = np.stack((angle + velocity * 0.05, velocity))
        return _pendulum_observation(self._state), -costs.astype(np.float32), np.zeros(self.num_envs, np.bool_)


def _pendulum_observation(state: np.ndarray) -> np.ndarray:
    angle, velocity = state
    return np.stack((np.cos(angle), np.sin(angle), velocity), -1).astype(np.float32)


class SequentialEnv(BatchedEnv):
    """``N`` environments of gymnasium's classic control, stepped one after the other: fastest for small ``N``.

    Args:
        build: returns a single environment.
    """

    def __init__(self, build: Callable[[], gymnasium.Env], num_envs: int, *, max_episode_frames: int) -> None:
        self.envs: list[Any] = [build() for _ in range(num_envs)]
        first = self.envs[0]
        super().__init__(num_envs, first.observation_space, first.action_space, max_episode_frames)
        for env, generator in zip(self.envs, self._generators, strict=True):
            env.np_random = generator

    def _seed(self, i: int, seed: int | None) -> None:
        super()._seed(i, seed)
        self.envs[i].np_random = self._generators[i]

    def _begin(self, i: int) -> np.ndarray:
        observation: np.ndarray = self.envs[i].reset()[0]
        return observation

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        stepped = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        observation, reward, terminated, _, _ = zip(*stepped, strict=True)
        return np.array(observation), np.array(reward, np.float32), np.array(terminated, np.bool_)

    def _extra_state(self) -> dict[str, Any]:
        return {"states": [copy(env.state) for env in self.envs]} | super()._extra_state()

    def _set_extra_state(self, state: dict[str, Any]) -> None:
        for env, env_state in zip(self.envs, state["states"], strict=True):
            env.reset()  # clears CartPole's counter of steps beyond the end
            env.state = copy(env_state)
        super()._set_extra_state(state)


def control_vector_env(name: str, num_envs: int, *, max_episode_frames: int) -> BatchedEnv:
    """``num_envs`` copies of one of ``TASKS``, by the faster of two classes with equal results."""
    single, batched, min_envs = TASKS[name]
    if batched is None or num_envs < min_envs:
        return SequentialEnv(single, num_envs, max_episode_frames=max_episode_frames)
    return batched(num_envs, max_episode_frames=max_episode_frames)


#: The single environment, the batched one if there is one, and the number of copies from which on it is faster.
TASKS: dict[str, tuple[Callable[[], gymnasium.Env], Callable[..., BatchedEnv] | None, int]] = {
    "cartpole": (CartPoleEnv, CartPole, 3),
    "acrobot": (AcrobotEnv, Acrobot, 5),
    "pendulum": (PendulumEnv, Pendulum, 3),
    "mountaincar": (MountainCarEnv, MountainCar, 3),
    "mountaincar_continuous": (Continuous_MountainCarEnv, None, 0),
}
