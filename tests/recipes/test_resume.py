"""The shipped recipes, killed and started again, end like runs that were never interrupted and had no checkpoint.

tests/training does the same at the worst moments with a tiny recipe whose environments cannot be stored; here it is
about those that can, and about what a recipe itself carries from batch to batch: waiting n-step rows, annealing, exact
target periods, single-frame storage.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrl_reg.training import read_metrics, strip_wall_clock

RECIPES = Path(__file__).parents[2] / "recipes"
CARTPOLE = ["m_iqn.py", "algo.n_steps=3", "algo.total_frames=6000"]
CARTPOLE += ["net.num_cells=[16,16]", "net.num_quantiles=4", "net.num_target_quantiles=4", "algo.update_every_frames=8"]
ATARI = ["m_dqn.py", "env=atari", "algo.total_frames=2560", "algo.num_envs=2"]
ATARI += ["algo.learning_starts_frames=256", "algo.replay_capacity=300", "net.num_cells=[8]", "algo.batch_size=8"]
ATARI += ["env.max_episode_frames=200"]
SMALL = ["policy.num_cells=[16]", "algo.total_frames=1920", "algo.batch_size=8"]
SMALL += ["env.max_episode_frames=50", "algo.learning_starts_frames=160", "algo.replay_capacity=2000"]
PCL = ["pcl.py", *SMALL, "algo.max_kl=0.01", "algo.lam=0.1"]  # sequences as rows, a learnt coefficient
SAC = ["sac.py", *SMALL, "policy=multicategorical"]
MIRL = ["mirl.py", "algo.method=sql_m", "algo.total_frames=6000"]  # two priors
COMMON = ["run.log_every_frames=128", "run.evaluate_every_frames=2000", "run.eval_episodes=2", "run.progress=false"]


CELL = ["q_learning.py", "regularizer=bellman_error", "head=quantile", "bootstrap=double", "algo.total_frames=6000"]
MINATAR = ["m_dqn.py", "env=minatar/breakout", "algo.total_frames=6000", "algo.learning_starts_frames=500"]
MINATAR += ["algo.replay_capacity=2000", "algo.batch_size=8", "algo.n_steps=3", "env.max_episode_frames=300"]
HOPPER = ["iq.py", "env=mujoco/hopper", *SMALL[:3], "algo.learning_starts_frames=160", "algo.replay_capacity=1500"]
GRIDWORLD = ["q_learning.py", "+method=dqn", "env=gridworld/square", "algo.total_frames=6000", "algo.n_steps=2"]


def begin(folder: Path, arguments: list[str], checkpoint_every: int) -> subprocess.Popen[bytes]:
    script, *settings = arguments
    settings = [*settings, *COMMON, f"run.checkpoint_every_frames={checkpoint_every}", f"run.dir={folder}"]
    command = [sys.executable, str(RECIPES / script), *settings]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def rows(folder: Path) -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def newest(folder: Path) -> str:
    return max((path.name for path in (folder / "checkpoints").glob("checkpoint-*")), default="")


# What runs, frames between checkpoints, and how often it is killed.
RUNS = {
    "m_iqn-3-steps": (CARTPOLE, 1000, 1),
    "m_iqn-overlapped": ([*CARTPOLE, "run.overlap=true"], 1000, 1),
    "pcl": (PCL, 480, 2),
    "m_dqn-atari": (ATARI, 512, 3),
    "m_dqn-atari-overlapped": ([*ATARI, "run.overlap=true"], 512, 3),
    "sac": (SAC, 480, 2),
    "mirl": (MIRL, 1000, 2),
    "m_dqn-minatar": (MINATAR, 1000, 4),
    "iq-hopper": (HOPPER, 300, 4),
    "dqn-gridworld": (GRIDWORLD, 1000, 4),
    "cell": (CELL, 1000, 4),
}
QUICK = ("m_iqn-3-steps",)  # each starts processes that import torch: the others only with -m slow
CASES = [pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in RUNS.items()]


@pytest.mark.parametrize(("arguments", "checkpoint_every", "kills"), CASES)
def test_killed_and_restarted(arguments: list[str], checkpoint_every: int, kills: int, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = begin(whole, arguments, 10**9)
    for _ in range(kills):
        seen = newest(killed)
        process = begin(killed, arguments, checkpoint_every)
        # Some rows past the newest checkpoint: they must be dropped and made again.
        while newest(killed) == seen:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "done.json").exists()
    assert begin(killed, arguments, checkpoint_every).wait(300) == 0
    assert uninterrupted.wait(300) == 0
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) > 10
