"""Collection without a TensorDict at every step: the vector environment is stepped directly.

Shapes: ``N`` environments, ``T`` steps per environment in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Categorical
from torchrl.envs import Compose, DeviceCastTransform, EnvBase, GymWrapper, RewardSum, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg.compat import call_hooks, unchecked_tensordict
from torchrl_reg.modules.acting import State, plain_policy

_FLAGS = ("done", "terminated", "truncated")


def fast_vector(env: EnvBase, *, sums_rewards: bool = True) -> VectorEnv | None:
    """The vector environment inside ``env`` if ``env`` adds nothing to its steps, else None.

    That is: a ``GymWrapper`` around a gymnasium vector environment that leaves resets to the caller and has
    one observation and one reward, with no transforms other than device casts and ``RewardSum``, which is required
    if ``sums_rewards``.
    """
    has_sum = False
    while isinstance(env, TransformedEnv):
        for transform in env.transform if isinstance(env.transform, Compose) else [env.transform]:
            if type(transform) is RewardSum:
                has_sum = list(transform.out_keys) == ["episode_reward"] and not has_sum
            elif type(transform) is not DeviceCastTransform:
                return None
        env = env.base_env
    if (sums_rewards and not has_sum) or type(env) is not GymWrapper or not isinstance(env._env, VectorEnv):
        return None
    vector = env._env
    disabled = getattr(vector, "autoreset_mode", None) == AutoresetMode.DISABLED
    keys = list(env.observation_spec.keys(True, True)) == ["observation"] and env.action_keys == ["action"]
    plain = env.wrapper_frame_skip == 1 and not env.info_dict_reader and len(env.batch_size) == 1
    return vector if disabled and keys and plain else None


def restart_finished(vector: VectorEnv, observation: Tensor, done: np.ndarray) -> Tensor:
    """Resets the ``done`` environments (bool ``[N]``); returns ``observation [N, ...]`` with their first ones."""
    first, _ = vector.reset(options={"reset_mask": done.copy()})
    mask = torch.from_numpy(done).reshape(-1, *[1] * (observation.ndim - 1))
    return torch.where(mask, torch.as_tensor(first, dtype=observation.dtype), observation)


class FastCollector:
    """Yields the batches ``[N, T]`` of TorchRL's ``Collector``, bit for bit, at a fraction of its cost.

    The policy explores (``ExplorationType.RANDOM``) and keeps no state between steps other than its random generator.
    Hooks registered on its modules, at any time, are called from the next batch on.

    Args:
        env: an environment with a :func:`fast_vector` and ``RewardSum`` among its transforms.
        policy: a callable on a TensorDict. A module with ``plain(state)`` (see :func:`plain_policy`) acts without one,
            in a third of the time: all actors of ``torchrl_reg.modules`` but ``gaussian_actor``.
        frames_per_batch: steps in a batch, over all environments.
        total_frames: frames after which iteration ends; -1: never.
        policy_device, storing_device: where the policy acts and where batches are delivered (default: the CPU).

    Raises:
        ValueError: ``env`` has no :func:`fast_vector`, or ``frames_per_batch`` is not a multiple of N.

    >>> from torchrl_reg.envs import EnvSettings, make_env
    >>> env = make_env(EnvSettings("cartpole"), 4)
    >>> collector = FastCollector(env, lambda td: td.set("action", torch.ones(4).long()), frames_per_batch=12)
    >>> next(iter(collector))["next", "reward"].shape
    torch.Size([4, 3, 1])
    >>> collector.shutdown()
    """

    def __init__(
        self,
        env: EnvBase,
        policy: Callable[[TensorDictBase], TensorDictBase],
        *,
        frames_per_batch: int,
        total_frames: int = -1,
        policy_device: torch.device | str = "cpu",
        storing_device: torch.device | str = "cpu",
    ) -> None:
        vector = fast_vector(env)
        if vector is None:
            raise ValueError(f"env must be a gymnasium vector environment under RewardSum alone, got {env}.")
        self.num_envs = vector.num_envs
        if frames_per_batch <= 0 or frames_per_batch % self.num_envs:
            raise ValueError(
                f"frames_per_batch must be a positive multiple of {self.num_envs}, got {frames_per_batch}."
            )
        self.env, self.policy, self.closed = env, policy, False
        self.frames_per_batch, self.total_frames = frames_per_batch, total_frames
        self._vector = vector
        self._policy_device, self._storing_device = torch.device(policy_device), torch.device(storing_device)
        modules = policy.modules() if isinstance(policy, nn.Module) else ()
        self._hooks, self._hook_counts = [hooks for module in modules for hooks in call_hooks(module)], list[int]()
        self._bind_policy()
        self._observation_dtype = env.observation_spec["observation"].dtype
        self._array_dtype = torch.empty(0, dtype=self._observation_dtype).numpy().dtype
        spec = env.full_action_spec["action"].cpu()
        self._to_numpy = Tensor.numpy if type(spec) is Categorical else partial(spec.to_numpy, safe=False)
        self._frames = 0
        self.reset()

    def __iter__(self) -> Iterator[TensorDictBase]:
        while self.total_frames < 0 or self._frames < self.total_frames:
            self._frames += self.frames_per_batch
            yield self.rollout()

    def reset(self) -> None:
        """Begins a new episode in every environment."""
        observation, _ = self._vector.reset()
        self._observation = self._as_tensor(observation)
        self._returns = np.zeros(self.num_envs, np.float32)

    def shutdown(self) -> None:
        """Closes the environment."""
        if not self.closed:
            self.closed = True
            if not self.env.is_closed:
                self.env.close()

    @property
    def carried(self) -> TensorDict:
        """State between batches: observations and returns of the unfinished episodes."""
        returns = torch.from_numpy(self._returns.copy()).unsqueeze(-1)
        return TensorDict({"observation": self._observation.clone(), "episode_reward": returns}, [self.num_envs])

    @carried.setter
    def carried(self, tensordict: TensorDictBase) -> None:
        self._observation = tensordict["observation"].clone()
        self._returns = tensordict["episode_reward"].squeeze(-1).numpy().copy()

    #: Names that TorchRL's ``Collector`` has.
    _carrier, track_traj_ids = carried, False

    @torch.no_grad()
    def rollout(self) -> TensorDict:
        """The next batch."""
        if list(map(len, self._hooks)) != self._hook_counts:
            self._bind_policy()
        shape = (self.num_envs, self.frames_per_batch // self.num_envs)
        states, next_observations = list[State](), list[Tensor]()
        rewards, returns = np.empty((2, *shape), np.float32)
        terminations, truncations = np.empty((2, *shape), np.bool_)
        on_device = self._policy_device.type != "cpu"
        flags = dict.fromkeys(_FLAGS, torch.zeros(self.num_envs, 1, dtype=torch.bool, device=self._policy_device))
        with set_exploration_type(ExplorationType.RANDOM):
            for step in range(shape[1]):
                episode_return = torch.from_numpy(self._returns[:, None])
                state: State = {"observation": self._observation, "episode_reward": episode_return, **flags}
                if on_device:
                    for key in ("observation", "episode_reward"):
                        state[key] = state[key].to(self._policy_device, non_blocking=True)
                self._act(state)
                action = self._to_numpy(state["action"].cpu())
                observation, reward, terminated, truncated, _ = self._vector.step(action)
                states.append(state)
                next_observations.append(self._as_tensor(observation))
                rewards[:, step], terminations[:, step], truncations[:, step] = reward, terminated, truncated
                self._returns = returns[:, step] = self._returns + rewards[:, step]
                self._reset_finished(next_observations[-1], terminated | truncated)
        following = {
            "observation": torch.stack(next_observations, 1),
            "reward": _column(rewards),
            "done": _column(terminations | truncations),
            "terminated": _column(terminations),
            "truncated": _column(truncations),
            "episode_reward": _column(returns),
        }
        return self._batch(states, following, list(shape))

    def _bind_policy(self) -> None:
        """Chooses how to call the policy; again after hooks were added or removed."""
        self._hook_counts = list(map(len, self._hooks))
        self._act = plain_policy(self.policy)

    def _reset_finished(self, observation: Tensor, done: np.ndarray) -> None:
        """Sets the observation of the next step: ``observation``, or where ``done`` the first of a new episode."""
        self._observation = observation
        if not np.count_nonzero(done):  # a tenth of the time of any()
            return
        self._observation = restart_finished(self._vector, observation, done)
        self._returns = np.where(done, np.float32(0), self._returns)

    def _batch(self, states: list[State], following: dict[str, Tensor], shape: list[int]) -> TensorDict:
        rows: dict[Any, Any] = {}
        for key, first in states[0].items():
            # Flags are the same zeros at every step, unless the policy wrote them.
            same = key in _FLAGS and all(state[key] is first for state in states)
            rows[key] = first.new_zeros((*shape, 1)) if same else torch.stack([state[key] for state in states], 1)
        device = self._storing_device
        if {device.type, self._policy_device.type} == {"cpu"} and all(isinstance(key, str) for key in rows):
            return unchecked_tensordict({**rows, "next": unchecked_tensordict(following, shape)}, shape)
        batch = TensorDict(rows, shape).to(device, non_blocking=True)
        return batch.set("next", TensorDict(following, shape).to(device, non_blocking=True))

    def _as_tensor(self, observation: Any) -> Tensor:
        if isinstance(observation, np.ndarray) and observation.dtype == self._array_dtype:
            return torch.from_numpy(observation)  # a third of as_tensor's time
        return torch.as_tensor(observation, dtype=self._observation_dtype)


def _column(rows: np.ndarray) -> Tensor:
    """``[N, T, 1]`` from ``[N, T]``."""
    return torch.from_numpy(rows).unsqueeze(-1)
