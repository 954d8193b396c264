"""Runs of the tiny recipe's environment in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_dqn
import torch

from torchrl_reg.lab import Run, RunSettings


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Run]:
    def make(name: str = "run", **settings) -> Run:
        settings = {"progress": False, "eval_episodes": 2, **settings}
        return Run(tiny_dqn.Config(run=RunSettings(dir=str(tmp_path / name), **settings)))

    return make


@pytest.fixture
def cartpole() -> Callable[..., tiny_dqn.EnvBase]:
    """Environments whose state cannot be stored."""
    return lambda num_envs=4: tiny_dqn.make_env(tiny_dqn.EnvSettings("CartPole-v1"), num_envs)


@pytest.fixture
def push_right() -> Callable:
    """A policy; its episodes last 8 to 10 steps."""
    return lambda state: state.set("action", torch.ones(state.batch_size, dtype=torch.long))


@pytest.fixture
def through(cartpole, push_right) -> Callable[..., Path]:
    """``through(run, total_frames, frames_per_batch, each)`` collects, calls ``each(batch)``, and finishes the run."""

    def collect(
        run: Run, total_frames: int = 8, frames_per_batch: int = 8, each=lambda batch: None, env=None, parts=None
    ) -> Path:
        batches = run.collect(
            env or cartpole(), push_right, total_frames=total_frames, frames_per_batch=frames_per_batch, parts=parts
        )
        for batch in batches:
            each(batch)
        return run.finish()

    return collect
