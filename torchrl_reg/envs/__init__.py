"""TorchRL environments, vectorized through gymnasium: classic control, MinAtar, Atari, MuJoCo and Adroit."""

from torchrl_reg.envs.settings import EnvError, EnvSettings, frame_stack, frames_per_step, resolve
from torchrl_reg.envs.vectorized import make_env

__all__ = [
    "EnvError",
    "EnvSettings",
    "frame_stack",
    "frames_per_step",
    "make_env",
    "resolve",
]
