"""TorchRL environments from settings: over gymnasium's vector environments, or native ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torchrl.envs import DeviceCastTransform, EnvBase, GymWrapper, RewardSum, TransformedEnv

from torchrl_reg.envs.adroit import adroit_vector_env
from torchrl_reg.envs.atari import atari_vector_env
from torchrl_reg.envs.batched_control import control_vector_env
from torchrl_reg.envs.goal_gridworld import GoalGridworldEnv
from torchrl_reg.envs.lunarlander import lunarlander_vector_env
from torchrl_reg.envs.minatar import MinAtar
from torchrl_reg.envs.mujoco import mujoco_vector_env
from torchrl_reg.envs.multigoal import MultiGoalEnv
from torchrl_reg.envs.settings import EnvError, EnvSettings, family_options, registered, resolve
from torchrl_reg.envs.snapshot import RecordedVectorEnv
from torchrl_reg.envs.tabular import gridworld_env

_BUILDERS: dict[str, Callable[..., VectorEnv]] = {
    "cartpole": partial(control_vector_env, "cartpole"),
    "acrobot": partial(control_vector_env, "acrobot"),
    "lunarlander": lunarlander_vector_env,
    "pendulum": partial(control_vector_env, "pendulum"),
    "mountaincar_continuous": partial(control_vector_env, "mountaincar_continuous"),
    "minatar": MinAtar,
    "atari": atari_vector_env,
    "mujoco": mujoco_vector_env,
    "adroit": adroit_vector_env,
}


def make_env(settings: EnvSettings, num_envs: int, *, device: torch.device | str = "cpu") -> EnvBase:
    """A vectorized TorchRL environment with ``batch_size`` ``[num_envs]`` and raw rewards.

    Keys: ``observation`` (float32 vectors, or uint8 images with the channels first), ``action``
    (int64 class index ``[num_envs]``; continuous ones float32 ``[num_envs, D]`` in the task's own
    box, whose bounds are ``env.full_action_spec_unbatched["action"].space.low`` and ``high``), and
    under ``next`` also ``reward``, ``done``, ``terminated``, ``truncated`` and ``episode_reward``
    (undiscounted return so far), each ``[num_envs, 1]``. Where an episode ends,
    ``("next", "observation")`` is its last observation. A gridworld also has ``state`` (int64 ``[num_envs]``) and
    ``steps``, see :class:`TabularEnv`.

    The games run on the CPU; another ``device`` is where the tensors go. ``env.set_seed(seed)`` gives
    sub-environment ``i`` the seed ``seed + i``, and what happened before leaves no trace. Gridworlds run on ``device``
    and draw from one generator for all sub-environments.

    Raises:
        EnvError: bad ``settings`` or ``num_envs``, a missing extra, or an unavailable ``device``.

    >>> env = make_env(EnvSettings("cartpole"), num_envs=2)
    >>> batch = env.rollout(3)
    >>> batch["next", "episode_reward"][:, -1, 0].tolist()
    [3.0, 3.0]
    """
    resolved = resolve(settings)
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise EnvError(f"num_envs must be an int >= 1, got {num_envs!r}.")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EnvError(f"device must be an available device, got {str(device)!r} without CUDA.")
    built = _build(resolved, num_envs, device)
    if isinstance(built, EnvBase):
        return TransformedEnv(built.to(device), RewardSum())
    env = TransformedEnv(GymWrapper(built, categorical_action_encoding=True, device="cpu"), RewardSum())
    if device != torch.device("cpu"):
        env.append_transform(DeviceCastTransform(device, "cpu"))
    return env


def _gridworld(num_envs: int, *, game: str, max_episode_frames: int, device: torch.device) -> EnvBase:
    if game == "goals":
        return GoalGridworldEnv(num_envs, max_episode_frames=max_episode_frames, device=device)
    return gridworld_env(num_envs, game=game, max_episode_frames=max_episode_frames, device=device)


#: Those that step tensors on the device themselves.
_NATIVE: dict[str, Callable[..., EnvBase]] = {"multigoal": MultiGoalEnv, "gridworld": _gridworld}


def _build(resolved: EnvSettings, num_envs: int, device: torch.device) -> VectorEnv | EnvBase:
    options = family_options(resolved)
    if resolved.name in _NATIVE:
        return _NATIVE[resolved.name](num_envs, device=device, **options)
    own = registered(resolved.name)
    if own is None:
        return _BUILDERS[resolved.name](num_envs, **options)
    build, vectorized = own
    if not vectorized:
        return RecordedVectorEnv(partial(build, **options), num_envs)
    built = build(num_envs, **options)
    if isinstance(built, EnvBase):
        return built
    if not isinstance(built, VectorEnv):
        raise EnvError(f"build must return a gymnasium VectorEnv or a TorchRL EnvBase, got {built!r}.")
    if built.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
        raise EnvError(f"build must return a VectorEnv with AutoresetMode.DISABLED, got {built!r}.")
    return built
