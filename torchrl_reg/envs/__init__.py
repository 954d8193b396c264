"""TorchRL environments, vectorized: classic control, MinAtar, Atari, MuJoCo, Adroit, gridworlds and tabular MDPs."""

from torchrl_reg.envs.gridworld import GoalGridworldEnv, TabularEnv
from torchrl_reg.envs.minatar import MinAtar
from torchrl_reg.envs.multigoal import MultiGoalEnv
from torchrl_reg.envs.settings import (
    EnvSettings,
    frame_stack,
    frames_per_step,
    register_env,
    resolve,
)
from torchrl_reg.envs.snapshot import RecordedVectorEnv, Restorable
from torchrl_reg.envs.vectorized import make_env

__all__ = [
    "EnvSettings",
    "GoalGridworldEnv",
    "MinAtar",
    "MultiGoalEnv",
    "RecordedVectorEnv",
    "Restorable",
    "TabularEnv",
    "frame_stack",
    "frames_per_step",
    "make_env",
    "register_env",
    "resolve",
]
