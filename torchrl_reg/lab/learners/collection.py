"""Where the batches of a run come from: the fast collector where it can, else TorchRL's; if asked, a batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

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
    """An endless collector whose batches are ``[*env.batch_size, T]`` with ``T`` in the batch's frames.

    ``kind`` is ``"fast"`` (a :class:`FastCollector` if it can step the environment, else TorchRL's) or ``"torchrl"``.

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
    devices: dict[str, Any] = {"policy_device": device, "storing_device": storing_device}
    if kind == "fast" and not track_trajectories and fast_vector(env) is not None:
        return FastCollector(env, policy, frames_per_batch=steps, **devices)
    # Given a device, the collector copies every step to it: name devices only when there are two.
    several = {device.type, storing_device.type} != {"cpu"}
    from torchrl.collectors import Collector  # a tenth of a second, which few runs need

    return Collector(
        env,
        policy,
        frames_per_batch=steps,
        total_frames=-1,
        exploration_type=ExplorationType.RANDOM,
        trust_policy=True,  # any function from state to state may act
        track_traj_ids=track_trajectories,
        # Each batch is stacked into fresh memory, so there is no buffer to copy out of.
        use_buffers=False,
        return_same_td=device.type == "cpu",
        # The policies here are feed-forward: nothing to add to the environment (unset, TorchRL warns).
        auto_register_policy_transforms=False,
        **(devices if several else {}),
    )


def overlapped(make: Callable[[nn.Module], AnyCollector], policy: Policy, *, seed: int) -> OverlappedCollector:
    """Collects with a copy of ``policy``, in a collector that ``make`` builds around it, one batch ahead.

    Raises:
        UserError: the policy cannot be copied.
    """
    copied = isinstance(policy, nn.Module)
    require(copied, "run.overlap", f"false with a {type(policy).__name__}, which cannot be copied", True)
    return OverlappedCollector(policy, make, seed=seed)


def batches_of(collector: AnyCollector | OverlappedCollector) -> Iterator[TensorDictBase]:
    """The batches of ``collector``: with ``run.seeds``, of all seeds in one pass where possible."""
    worker = current_worker()
    return iter(collector) if worker is None else batched_collection(worker, collector)


def truncate_episodes(batch: TensorDictBase) -> int:
    """Marks the last step of ``batch`` as truncated and returns the number of episodes this ends."""
    running = int((~batch["next", "done"][..., -1, :]).sum())
    for key in ("truncated", "done"):
        flags = batch.get(("next", key), None)
        if flags is not None:
            flags[..., -1, :] = True
    return running
