"""The shipped recipes, killed and started again, end like runs that were never interrupted and had no checkpoint.

tests/lab/run does the same with SIGKILL, at the worst moments, with a tiny recipe whose environments cannot be stored;
here it is about those that can, and about what a recipe itself carries from batch to batch: waiting n-step rows,
annealing, exact target periods, single-frame storage.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrl_reg.lab import read_metrics, strip_wall_clock

COMMON = "run.log_every_frames=128 run.evaluate_every_frames=2000 run.eval_episodes=2 run.progress=false"
LONG = "algo.total_frames=6000"
CARTPOLE = f"m_iqn algo.n_steps=3 {LONG} net.num_cells=[16,16] net.num_quantiles=4 net.num_target_quantiles=4"
CARTPOLE += " algo.update_every_frames=8"
ATARI = "m_dqn env=atari algo.total_frames=2560 algo.num_envs=2 algo.learning_starts_frames=256 net.num_cells=[8]"
ATARI += " algo.replay_capacity=300 algo.batch_size=8 env.max_episode_frames=200"
SMALL = "policy.num_cells=[16] algo.total_frames=1920 algo.batch_size=8 algo.learning_starts_frames=160"
BRIEF = f"{SMALL} env.max_episode_frames=50 algo.replay_capacity=2000"
MINATAR = f"m_dqn env=minatar/breakout {LONG} algo.learning_starts_frames=500 algo.replay_capacity=2000"
GYM = f"{SMALL} env=gym env.game=Pendulum-v1 algo.replay_capacity=2000"
# What runs, frames between checkpoints, and how often it is killed.
RUNS = {
    "m_iqn-3-steps": (CARTPOLE, 1000, 1),
    "m_iqn-overlapped": (f"{CARTPOLE} run.overlap=true", 1000, 1),
    "pcl": (f"pcl {BRIEF} algo.max_kl=0.01 algo.lam=0.1", 480, 2),  # sequences as rows, a learnt coefficient
    "m_dqn-atari": (ATARI, 512, 3),
    "m_dqn-atari-overlapped": (f"{ATARI} run.overlap=true", 512, 3),
    "sac": (f"sac {BRIEF} policy=multicategorical", 480, 2),
    "mirl": (f"mirl algo.method=sql_m {LONG}", 1000, 2),  # two priors
    "m_dqn-minatar": (f"{MINATAR} algo.batch_size=8 algo.n_steps=3 env.max_episode_frames=300", 1000, 4),
    "iq-hopper": (f"iq env=mujoco/hopper {SMALL} algo.replay_capacity=1500", 300, 4),
    "dqn-gridworld": (f"q_learning +method=dqn env=gridworld/square {LONG} algo.n_steps=2", 1000, 4),
    "gym-frozenlake": ("q_learning env=gym env.game=FrozenLake-v1 algo.total_frames=3000 net.num_cells=[16]", 600, 2),
    "gym-pendulum": (f"sac {GYM}", 300, 2),
    "rainbow": (f"q_learning +method=rainbow net.num_cells=[16] {LONG} algo.update_every_frames=8", 1000, 2),
    "btr": (f"q_learning +method=btr net.num_cells=[16,16] {LONG} algo.update_every_frames=8", 1000, 4),
    "m_iqn-compiled": (f"{CARTPOLE} run.compile=true algo.priority_exponent=0.5", 1000, 2),  # draws in its graphs
    "sac-compiled": (f"sac {BRIEF} run.compile=true", 480, 2),
    "cell": (f"q_learning regularizer=bellman_error head=quantile bootstrap=double {LONG}", 1000, 4),
}
QUICK = ("m_iqn-3-steps", "rainbow", "gym-frozenlake", "gym-pendulum")  # the others only with -m slow
CASES = [pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in RUNS.items()]


@pytest.mark.parametrize(("words", "checkpoint_every", "kills"), CASES)
def test_killed_and_restarted(words, checkpoint_every, kills, start, kill):
    whole = start(f"{words} {COMMON} run.checkpoint_every_frames=1000000000", "whole")
    words = f"{words} {COMMON} run.checkpoint_every_frames={checkpoint_every}"
    for number in range(kills):
        kill(words, "killed", rows=1 + number % 2)  # which must be dropped and made again
    assert start(words, "killed") == whole and len(whole) > 10


STOPPED = {
    **{name: words for name, (words, *_) in RUNS.items()},
    "m_dqn": f"m_dqn net.num_cells=[16] {LONG} algo.update_every_frames=16",
    "pqn": f"pqn {LONG}",
    "torchrl-collector": f"m_dqn net.num_cells=[16] {LONG} algo.update_every_frames=16 run.collector=torchrl",
}
QUICK_STOPPED = ("m_iqn-overlapped", "pqn")
SIGNALLED = [pytest.param(STOPPED["m_dqn"], each, id=each.name) for each in (signal.SIGTERM, signal.SIGUSR1)]
SIGNALLED += [
    pytest.param(words, signal.SIGINT, id=name, marks=() if name in QUICK_STOPPED else pytest.mark.slow)
    for name, words in STOPPED.items()
]


@pytest.mark.parametrize(("words", "number"), SIGNALLED)
def test_stopped_by_a_signal_and_continued(words, number, start, stop, tmp_path):
    """Between two rows, with the default interval: there is no checkpoint but that of the stop."""
    whole, words = start(f"{words} {COMMON}", "whole"), f"{words} {COMMON}"
    for rows in (3, 5):
        said = stop(words, "stopped", number, rows)
        (path,) = list((tmp_path / "stopped/checkpoints").glob("*.torchrl"))[-1:]
        frames = max(int(path.stem[-12:]) for path in path.parent.glob("*.torchrl"))
        assert f"stopped at frame {frames:,} with a checkpoint; the same command continues there: python " in said
    assert start(words, "stopped") == whole and len(whole) > 10
    assert not (tmp_path / "stopped/metrics.previous.jsonl").exists()


def test_a_second_signal_stops_at_once_and_the_record_is_kept_beside(start, stop, tmp_path, capfd):
    words = f"m_dqn net.num_cells=[16] algo.total_frames=1100 {COMMON}"
    said = stop(words, "run", signal.SIGINT, rows=4, times=2)
    assert "stopped before the first checkpoint; the same command starts again at frame 0: python" in said
    record, folder = (tmp_path / "run/metrics.jsonl").read_bytes(), tmp_path / "run"
    assert record.count(b"\n") == 4 and "stopping as soon as the run is saved; a second" in capfd.readouterr().err
    assert len(start(words, "run")) > 4
    assert (folder / "metrics.previous.jsonl").read_bytes() == record
    assert f"{folder} has no checkpoint and starts again at frame 0" in " ".join(capfd.readouterr().err.split())


def test_seeds_stop_at_the_same_frame_and_each_ends_like_one_that_was_not_stopped(start, stop, tmp_path):
    words = f"m_dqn run.seeds=[0,1,2] net.num_cells=[16] algo.total_frames=3000 {COMMON}"
    start(words, "whole")
    said = stop(words, "both", signal.SIGTERM, rows=8)  # as the second seed writes, when the first has passed
    (frames,) = {path.stem for path in (tmp_path / "both").glob("seed=*/checkpoints/*.torchrl")}
    assert f"stopped at frame {int(frames[-12:]):,} with a checkpoint" in said
    start(words, "both")
    for seed in range(3):
        one, other = (read_metrics(tmp_path / name / f"seed={seed}/metrics.jsonl") for name in ("whole", "both"))
        assert [*map(strip_wall_clock, one)] == [*map(strip_wall_clock, other)] and len(one) > 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_signalled_ends_like_one_that_was_not(number, start, tmp_path):
    words = f"m_dqn net.num_cells=[16] {LONG} algo.update_every_frames=16 {COMMON}"
    whole, root = start(words, "whole"), Path(__file__).parents[2]
    script, *settings = words.split()
    command = [sys.executable, str(root / f"recipes/{script}.py"), *settings, f"run.dir={tmp_path / 'run'}"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(read_metrics(tmp_path / "run/metrics.jsonl")) < 3:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and "with a checkpoint; the same command continues there" in said
    assert start(words, "run") == whole
