"""Sweeps: one submitit array on SLURM, or the same runs on this machine."""
