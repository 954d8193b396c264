"""The collector of a run (lean where possible, else TorchRL's) and what is read from its batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, RewardSum, TransformedEnv
from torchrl.envs.utils import ExplorationType

from torchrl_reg.collectors import LeanCollector, lean_vector
from torchrl_reg.torchrl_compat import entry
from torchrl_reg.training.errors import require

EPISODE_RETURN = "episode_reward"
AnyCollector: TypeAlias = Collector | LeanCollector


def make_collector(
    env: EnvBase,
    policy: Callable[[TensorDictBase], TensorDictBase],
    *,
    frames_per_batch: int,
    frames_per_step: int,
    device: torch.device,
    storing_device: torch.device,
    track_trajectories: bool,
    kind: str = "lean",
) -> AnyCollector:
    """An endless collector whose batches are ``[*env.batch_size, T]`` with ``T`` in the batch's frames.

    ``kind`` is ``"lean"`` (a :class:`LeanCollector` if it can step the environment, else TorchRL's) or ``"torchrl"``.

    Raises:
        ConfigError: ``frames_per_batch`` is not a multiple of the frames of one vector step.
    """
    step_frames = max(1, env.batch_size.numel()) * frames_per_step
    require(
        frames_per_batch > 0 and frames_per_batch % step_frames == 0,
        "frames_per_batch",
        f"a positive multiple of {step_frames} (environments x frames per step)",
        frames_per_batch,
    )
    if EPISODE_RETURN not in list(env.observation_spec.keys()):
        env = TransformedEnv(env, RewardSum(), auto_unwrap=False)
    if kind == "lean" and not track_trajectories and lean_vector(env) is not None:
        return LeanCollector(
            env,
            policy,
            frames_per_batch=frames_per_batch // frames_per_step,
            policy_device=device,
            storing_device=storing_device,
        )
    # Given a device, the collector copies every step to it: name devices only when there are two.
    several = {device.type, storing_device.type} != {"cpu"}
    devices = {"policy_device": device, "storing_device": storing_device} if several else {}
    return Collector(
        env,
        policy,
        frames_per_batch=frames_per_batch // frames_per_step,
        total_frames=-1,
        exploration_type=ExplorationType.RANDOM,
        trust_policy=True,  # any function from state to state may act
        track_traj_ids=track_trajectories,
        # Each batch is stacked into fresh memory, so there is no buffer to copy out of.
        use_buffers=False,
        return_same_td=device.type == "cpu",
        # The policies here are feed-forward: nothing to add to the environment (unset, TorchRL warns).
        auto_register_policy_transforms=False,
        **devices,
    )


def finished_returns(batch: TensorDictBase) -> list[float]:
    """Undiscounted returns of the episodes that end in ``batch``, in the order in which they end."""
    done = entry(batch, ("next", "done"))
    if not done.any():
        return []
    returns, time = batch["next", EPISODE_RETURN], done.ndim - 2
    return returns.movedim(time, 0)[done.movedim(time, 0)].tolist()


def cut_episodes(batch: TensorDictBase) -> int:
    """Marks the last step of ``batch`` as truncated and returns the number of episodes this ends."""
    running = int((~batch["next", "done"][..., -1, :]).sum())
    for key in ("truncated", "done"):
        flags = batch.get(("next", key), None)
        if flags is not None:
            flags[..., -1, :] = True
    return running
