"""Collection in several processes, each of which steps some of the environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors import Collector, MultiSyncCollector
from torchrl.envs import Compose, DeviceCastTransform, EnvBase, RewardSum
from torchrl.envs.utils import ExplorationType

from torchrl_reg.collectors.fast import FastCollector, fast_vector


def maker(env: EnvBase) -> Callable[..., EnvBase] | None:
    """What makes an environment like ``env`` of ``num_envs``, if ``env`` is as ``make_env`` made it, else None."""
    transform = getattr(env, "transform", None)
    kinds = {type(each) for each in (transform if isinstance(transform, Compose) else [transform])}
    return vars(env).get("made_by") if kinds <= {RewardSum, DeviceCastTransform} else None


class _Worker(Collector):
    """TorchRL's collector of one process; after a reset a :class:`FastCollector` steps its environments, if one can."""

    _fast: FastCollector | None = None

    def reset(self, index: Any = None, **kwargs: Any) -> None:
        if fast_vector(self.env) is None:
            return super().reset(index, **kwargs)
        steps = self.frames_per_batch * self.env.batch_size.numel()
        self._fast = FastCollector(self.env, self.policy, frames_per_batch=steps)

    def rollout(self) -> TensorDictBase:
        if self._fast is None:
            return super().rollout()
        return self._final_rollout.update_(self._fast.rollout())  # memory that both processes see


class SplitCollector(MultiSyncCollector):
    """Yields batches ``[N, T]`` of N environments, a share of which each of several processes steps.

    Before each batch the processes get the policy's parameters and buffers, epsilon among them; then they wait until
    the next one is asked for. Each draws from generators of its own, so after ``set_seed(seed)`` and ``reset()``
    batches depend on the seed and on the number of processes, and on nothing else.

    Args:
        env: a vectorized environment of ``make_env``, without further transforms; it is only read, and made again in
            each process.
        policy: a module that can be pickled, on the CPU.
        processes: their number, a divisor of N.
        frames_per_batch: steps in a batch, over all environments.
        fast: step vector environments directly, as :class:`FastCollector` does, once they have been reset.

    Raises:
        ValueError: an environment that cannot be made again, or cannot be divided among the processes.
    """

    #: As TorchRL's ``Collector`` calls it.
    track_traj_ids = False

    def __init__(
        self, env: EnvBase, policy: nn.Module, *, processes: int, frames_per_batch: int, fast: bool = True
    ) -> None:
        make, count = maker(env), env.batch_size.numel()
        if make is None:
            raise ValueError(f"env must be an environment of make_env as it is, got {env}.")
        if count % processes:
            raise ValueError(f"processes must be a divisor of the {count} environments, got {processes}.")
        super().__init__(
            [make] * processes,
            policy,
            create_env_kwargs={"num_envs": count // processes},
            frames_per_batch=frames_per_batch,
            collector_class=_Worker if fast else None,
            exploration_type=ExplorationType.RANDOM,
            trust_policy=True,
            update_at_each_batch=True,
            use_buffers=True,
            cat_results=0,
            postproc=_without_trajectories,
            num_threads=torch.get_num_threads(),  # of this process, which TorchRL would change
            auto_register_policy_transforms=False,
        )
        self.env = env

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Gives environment ``i`` the seed ``seed + i``, as in one process; TorchRL's own seeds leave ALE's 31 bits."""
        share = self.env.batch_size.numel() // self.num_workers
        for index, pipe in enumerate(self.pipes):
            pipe.send(((seed + index * share, True), "seed"))
            self._recv_and_check(pipe, worker_idx=index)
        return seed


def _without_trajectories(batch: TensorDictBase) -> TensorDictBase:
    """Drops the numbers of trajectories, which count across processes in the order of their arrival."""
    return batch.exclude("collector")
