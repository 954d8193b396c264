"""Collectors of training batches: the fast one where it supports the environment, else TorchRL's; overlapping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.envs import EnvBase, RewardSum, TransformedEnv
from torchrl.envs.utils import ExplorationType

from torchrl_reg.collectors import FastCollector, OverlappedCollector, fast_vector
from torchrl_reg.lab.errors import require
from torchrl_reg.lab.run.evaluation import Policy
from torchrl_reg.lab.seeds.batched_collection import batched_collection
from torchrl_reg.lab.seeds.workers import current_worker

if TYPE_CHECKING:
    from torchrl.collectors import Collector

EPISODE_RETURN = "episode_reward"
AnyCollector: TypeAlias = "Collector | FastCollector"


def make_collector(
    env: EnvBase,
    policy: Policy,
    *,
    frames_per_batch: int,
    frames_per_step: int,
    device: torch.device,
    storing_device: torch.device,
    track_trajectories: bool,
    kind: str = "fast",
) -> AnyCollector:
    """An endless collector of batches ``[*env.batch_size, T]`` with ``frames_per_batch`` frames in all.

    ``kind`` is ``"fast"`` (a :class:`FastCollector` if it supports the environment, else TorchRL's) or ``"torchrl"``.

    Raises:
        UserError: ``frames_per_batch`` is not a multiple of the frames of one vector step.
    """
    step_frames = max(1, env.batch_size.numel()) * frames_per_step
    fits = frames_per_batch > 0 and frames_per_batch % step_frames == 0
    multiple = f"a positive multiple of {step_frames} (environments x frames per step)"
    require(fits, "frames_per_batch", multiple, frames_per_batch)
    if EPISODE_RETURN not in list(env.observation_spec.keys()):
        env = TransformedEnv(env, RewardSum(), auto_unwrap=False)
    steps = frames_per_batch // frames_per_step
    if kind == "fast" and not track_trajectories and fast_vector(env) is not None:
        return FastCollector(env, policy, frames_per_batch=steps, policy_device=device, storing_device=storing_device)
    # Given a device, TorchRL's collector copies every step to it, even from the CPU to the CPU.
    copies = {device.type, storing_device.type} != {"cpu"}
    from torchrl.collectors import Collector  # a tenth of a second, which few runs need

    return Collector(
        env,
        policy,
        frames_per_batch=steps,
        total_frames=-1,
        exploration_type=ExplorationType.RANDOM,
        trust_policy=True,  # the policy may be any function of the tensordict
        track_traj_ids=track_trajectories,
        # Without buffers every batch is stacked into new memory, and need not be copied.
        use_buffers=False,
        return_same_td=device.type == "cpu",
        # Feed-forward policies need no transforms in the environment; TorchRL warns if this is unset.
        auto_register_policy_transforms=False,
        policy_device=device if copies else None,
        storing_device=storing_device if copies else None,
    )


def overlapped(make: Callable[[nn.Module], AnyCollector], policy: Policy, *, seed: int) -> OverlappedCollector:
    """Collects one batch ahead, with a copy of ``policy`` in a collector built by ``make``.

    Raises:
        UserError: a policy that cannot be copied.
    """
    is_module = isinstance(policy, nn.Module)
    require(is_module, "run.overlap", f"false with a {type(policy).__name__}, which cannot be copied", True)
    return OverlappedCollector(policy, make, seed=seed)


def batches_of(collector: AnyCollector | OverlappedCollector) -> Iterator[TensorDictBase]:
    """The batches of ``collector``; with ``run.seeds``, those of all seeds in one forward pass where possible."""
    worker = current_worker()
    return iter(collector) if worker is None else batched_collection(worker, collector)


def truncate_episodes(batch: TensorDictBase) -> int:
    """Marks the last step of ``batch`` as truncated, and returns the number of episodes that this ends."""
    running = int((~batch["next", "done"][..., -1, :]).sum())
    for key in ("truncated", "done"):
        flags = batch.get(("next", key), None)
        if flags is not None:
            flags[..., -1, :] = True
    return running
