"""Sweeps: one submitit array on SLURM, or the same runs on this machine."""

from torchrl_reg.lab.cli.extras import check_posix

check_posix()
