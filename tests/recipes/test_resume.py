"""The shipped recipes, killed and started again, end like runs that were never interrupted.

tests/training does the same at the worst moments with a tiny recipe; here it is about what a recipe itself carries from
batch to batch: waiting n-step rows, annealing, exact target periods, single-frame storage.
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
CARTPOLE = ["m_iqn.py", "algo.n_steps=3", "algo.total_frames=6000", "run.checkpoint_every_frames=1000"]
CARTPOLE += ["net.num_cells=[16,16]", "net.num_quantiles=4", "net.num_target_quantiles=4", "algo.update_every_frames=8"]
ATARI = ["m_dqn.py", "env=atari", "algo.total_frames=2560", "run.checkpoint_every_frames=512", "algo.num_envs=2"]
ATARI += ["algo.learning_starts_frames=256", "algo.replay_capacity=300", "net.num_cells=[8]", "algo.batch_size=8"]
ATARI += ["env.max_episode_frames=200"]
SMALL = ["policy.num_cells=[16]", "algo.total_frames=1920", "run.checkpoint_every_frames=480", "algo.batch_size=8"]
SMALL += ["env.max_episode_frames=50", "algo.learning_starts_frames=160", "algo.replay_capacity=2000"]
PCL = ["pcl.py", *SMALL, "algo.max_kl=0.01", "algo.lam=0.1"]  # sequences as rows, a learnt coefficient
SAC = ["sac.py", *SMALL, "policy=multicategorical"]
MIRL = ["mirl.py", "algo.method=sql_m", "algo.total_frames=6000", "run.checkpoint_every_frames=1000"]  # two priors
COMMON = ["run.log_every_frames=128", "run.evaluate_every_frames=2000", "run.eval_episodes=2", "run.progress=false"]


def begin(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    script, *settings = arguments
    command = [sys.executable, str(RECIPES / script), *settings, *COMMON, f"run.dir={folder}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def rows(folder: Path) -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


RUNS = {"m_iqn-3-steps": CARTPOLE, "pcl": PCL, "m_dqn-atari": ATARI, "sac": SAC, "mirl": MIRL}
QUICK = ("m_iqn-3-steps", "pcl")  # each starts four processes that import torch: the others only with -m slow
CASES = [pytest.param(run, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, run in RUNS.items()]


@pytest.mark.parametrize("arguments", CASES)
def test_killed_and_restarted(arguments: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = begin(whole, arguments)
    for checkpoints in (1, 2):
        process = begin(killed, arguments)
        # Some rows past the newest checkpoint: they must be dropped and made again.
        while len(list((killed / "checkpoints").glob("checkpoint-*"))) < checkpoints:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "done.json").exists()
    assert begin(killed, arguments).wait(120) == 0
    assert uninterrupted.wait(120) == 0
    assert rows(killed) == rows(whole)
    assert len(rows(whole)) > 10
