"""TorchRL environments from settings, native or around gymnasium's vector environments."""

from __future__ import annotations

from functools import partial

import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torchrl.envs import DeviceCastTransform, EnvBase, GymWrapper, RewardSum, TransformedEnv

from torchrl_reg.envs.atari import atari_vector_env
from torchrl_reg.envs.batched import control_vector_env
from torchrl_reg.envs.gridworld import gridworld_env
from torchrl_reg.envs.gym import defaults_of, gym_vector_env
from torchrl_reg.envs.minatar import MinAtar
from torchrl_reg.envs.mujoco import adroit_env, lunarlander_env, mujoco_env
from torchrl_reg.envs.multigoal import MultiGoalEnv
from torchrl_reg.envs.settings import FAMILIES, EnvSettings, Family, check_value, resolve
from torchrl_reg.envs.snapshot import RecordedVectorEnv


def make_env(settings: EnvSettings, num_envs: int, *, device: torch.device | str = "cpu") -> EnvBase:
    """A vectorized TorchRL environment with ``batch_size`` ``[num_envs]`` and raw rewards.

    Keys: ``observation`` (float32 vectors, or uint8 images with the channels first), ``action`` (int64 class index
    ``[num_envs]``; continuous actions float32 ``[num_envs, D]`` within the bounds
    ``env.full_action_spec_unbatched["action"].space.low`` and ``high``), and under ``next`` also ``reward``, ``done``,
    ``terminated``, ``truncated`` and ``episode_reward`` (undiscounted return so far), each ``[num_envs, 1]``. At the
    end of an episode ``("next", "observation")`` is its last observation. A gridworld also has ``state`` (int64
    ``[num_envs]``) and ``steps``, see :class:`TabularEnv`.

    gymnasium's environments run on the CPU, and their tensors are moved to ``device``. ``env.set_seed(seed)`` gives
    sub-environment ``i`` the seed ``seed + i`` and discards all earlier state. Gridworlds run on ``device`` and draw
    from one generator for all sub-environments.

    Raises:
        ValueError: bad ``settings`` or ``num_envs``, a missing extra, or an unavailable ``device``.

    >>> env = make_env(EnvSettings("cartpole"), num_envs=2)
    >>> batch = env.rollout(3)
    >>> batch["next", "episode_reward"][:, -1, 0].tolist()
    [3.0, 3.0]
    """
    resolved = resolve(settings)
    check_value("num_envs", num_envs)
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be an available device, got {str(device)!r} without CUDA.")
    built = _build(resolved, num_envs)
    if isinstance(built, EnvBase):
        env = TransformedEnv(built.to(device), RewardSum())
    else:
        env = TransformedEnv(GymWrapper(built, categorical_action_encoding=True, device="cpu"), RewardSum())
        if device != torch.device("cpu"):
            env.append_transform(DeviceCastTransform(device, "cpu"))
    return env


def _build(resolved: EnvSettings, num_envs: int) -> VectorEnv | EnvBase:
    family = FAMILIES[resolved.name]
    options = family.options(resolved)
    if not family.vectorized:
        return RecordedVectorEnv(partial(family.build, **options), num_envs)
    built = family.build(num_envs, **options)
    if isinstance(built, EnvBase):
        return built
    if not isinstance(built, VectorEnv):
        raise ValueError(f"build must return a gymnasium VectorEnv or a TorchRL EnvBase, got {built!r}.")
    if built.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
        raise ValueError(f"build must return a VectorEnv with AutoresetMode.DISABLED, got {built!r}.")
    return built


_LIMITS = {"cartpole": 500, "acrobot": 500, "pendulum": 200, "mountaincar": 200, "mountaincar_continuous": 999}
FAMILIES.update(
    {
        name: Family.from_signature(partial(control_vector_env, name, max_episode_frames=limit))
        for name, limit in _LIMITS.items()
    },
    minatar=Family.from_signature(MinAtar),
    atari=Family.from_signature(atari_vector_env),
    gridworld=Family.from_signature(gridworld_env),
    # The metaclass of EnvBase hides the signature of the constructor.
    multigoal=Family(MultiGoalEnv, True, True, {"max_episode_frames": 30}, needs_game=False),
    gym=Family(
        gym_vector_env,
        vectorized=True,
        games=True,
        defaults={"max_episode_frames": 0},  # that of the id
        needs_game=False,
        takes_kwargs=True,
        defaults_of=defaults_of,
    ),
    lunarlander=Family.from_signature(lunarlander_env, vectorized=False),
    mujoco=Family.from_signature(mujoco_env, vectorized=False),
    adroit=Family.from_signature(adroit_env, vectorized=False),
)
