"""Sweeps on a real SLURM: events of jobs on a cluster, and the runs afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from sweep_harness import ROOT, SLURM, Sweep, ask, wait_until

pytestmark = pytest.mark.slurm
WHOLE = list(range(1, 21))
SLOW = "sweep.base.algo.seconds=0.3"  # six seconds a run


def begin(sweep: Sweep, *arguments: str, runs: int = 4) -> None:
    """Launches, and waits until so many runs have a checkpoint."""
    sweep.launch(*arguments)
    wait_until(lambda: sum((run / "checkpoint").exists() for run in sweep.runs()) >= runs)


def restarts(run) -> list[int]:
    """The restart count of the job in each life of a run, from its log."""
    log = run.with_name(run.name + ".log").read_text()
    return [int(line.partition("(restart ")[2].partition(")")[0]) for line in log.splitlines() if "(restart " in line]


def status(sweep: Sweep) -> str:
    return ask(sys.executable, str(SLURM / "status.py"), str(sweep.folder))


def assert_whole(sweep: Sweep, number: int = 4) -> None:
    """All runs done, no frame lost or done twice, none begun before its last checkpoint."""
    for run in sweep.wait_for(number):
        assert sweep.frames(run) == WHOLE
        assert sweep.starts(run) == sorted(sweep.starts(run))
    assert len(sweep.finished()) == number


def test_one_array_with_a_parallelism_limit(sweep):
    started = time.monotonic()
    assert "submitted array" in sweep.launch(SLOW, "cluster.parallel_jobs=2").stdout
    seen = []
    while len(sweep.finished()) < 4:
        seen.append(sum(state == "RUNNING" for state in sweep.states().values()))
        assert time.monotonic() - started < 120
        time.sleep(0.2)
    assert max(seen) == 2
    assert_whole(sweep)
    assert len((sweep.folder / "jobs.jsonl").read_text().splitlines()) == 1


def test_a_failing_element_leaves_its_traceback_and_only_it_is_submitted_again(sweep):
    sweep.launch("+sweep.base.algo.fails_for_seed=1")
    sweep.wait_for(3)
    sweep.wait_for_empty_queue()
    (log,) = sweep.folder.glob("*/*/*/seed=1.log")
    assert "Traceback (most recent call last)" in log.read_text()
    assert any("1 of 1 runs failed" in path.read_text() for path in sweep.folder.glob("jobs/*_1_0_log.out"))
    answer = status(sweep)
    assert "3 done, 1 failed" in answer and "seed=1: ZeroDivisionError: this seed was made to fail" in answer
    assert "4 runs, 1 to submit" in sweep.launch("+sweep.base.algo.fails_for_seed=1").stdout


def test_a_cancelled_element_is_the_missing_part(sweep):
    slow = "sweep.base.algo.seconds=1"
    begin(sweep, slow)
    assert "0 to submit" in sweep.launch(slow).stdout, "all of them are in the queue"
    ask("scancel", f"{sweep.array}_2")
    sweep.wait_for(3)
    sweep.wait_for_empty_queue()
    assert len(sweep.finished()) == 3
    assert "4 runs, 1 to submit" in sweep.launch(slow).stdout
    assert_whole(sweep)
    assert sweep.starts(*sweep.runs("*/*/*/seed=2"))[-1] >= 5, "it went on from its checkpoint"


def test_a_job_that_was_requeued_and_then_cancelled_is_cancelled(sweep):
    begin(sweep, "sweep.base.algo.seconds=1", "sweep.seeds=1", runs=1)
    ask("scontrol", "requeue", sweep.array)
    ask("scancel", sweep.array)
    sweep.wait_for_empty_queue()
    wait_until(lambda: "1 cancelled" in status(sweep), 20, status(sweep))  # accounting lags behind


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_error_of_an_element_that_cannot_begin_is_shown(sweep, seeds):
    sweep.launch("+cluster.extra.hold=true", f"sweep.seeds={seeds}")
    (element,) = sweep.folder.glob("code/*/slurm/array_element.py")
    element.write_text("import scypy\n")
    ask("scontrol", "release", sweep.array)
    sweep.wait_for_empty_queue()
    answer = status(sweep)
    assert answer.count("ModuleNotFoundError: No module named 'scypy'") == seeds and "Exited with" not in answer
    assert "submits what is missing" not in answer


def test_repeated_usr2_on_one_element_stops_it_and_queues_it_again(sweep):
    begin(sweep, SLOW)
    for _ in range(3):  # scancel may find the job requeued already
        subprocess.run(["scancel", "--signal=USR2", f"{sweep.array}_1"], timeout=30)
    assert_whole(sweep)
    lives = {run.name: restarts(run) for run in sweep.runs()}
    assert lives["seed=1"][:2] == [0, 1] and lives["seed=0"] == [0]


def test_usr2_before_anybody_listens_does_not_end_the_job(sweep):
    sweep.launch("sweep.seeds=1")
    wait_until(lambda: "RUNNING" in sweep.states().values())
    for _ in range(5):
        subprocess.run(["scancel", "--signal=USR2", sweep.array], timeout=30)
    assert_whole(sweep, 1)


def test_a_run_that_failed_shows_while_its_element_goes_on(sweep):
    sweep.launch("sweep.base.algo.seconds=0.5", "+sweep.base.algo.fails_for_seed=0", "cluster.runs_per_job=4")
    wait_until(lambda: list(sweep.folder.glob("*/*/*/seed=0.failed")))
    assert "3 running, 1 failed" in status(sweep)
    sweep.wait_for(3)


def test_a_hard_requeue_goes_on_from_the_files(sweep):
    begin(sweep, SLOW)
    ask("scontrol", "requeue", f"{sweep.array}_3")
    assert_whole(sweep)
    wait_until(lambda: "CG" not in str(sweep.states()) and not sweep.states(), 90)
    starts = sweep.starts(*sweep.runs("*/*/*/seed=3"))
    assert starts[0] == 0 and len(starts) <= 2, "one that ended before SIGKILL is not run again"


def test_seeds_of_one_process_go_on_together(sweep):
    begin(sweep, "cluster.seeds_per_run=2", runs=2)
    ask("scontrol", "requeue", f"{sweep.array}_0")
    assert_whole(sweep)
    assert len(list(sweep.folder.glob("*/*/*/*.log"))) == 2
    assert status(sweep).startswith(f"{sweep.name}: 4 runs: 4 done")


def test_several_runs_share_a_gpu_each_in_its_own_process_with_its_own_threads(sweep):
    sweep.launch("cluster.gpus=1", "cluster.runs_per_job=2", "cluster.threads=2", "cluster.parallel_jobs=4")
    assert_whole(sweep)
    devices = [(run / "starts.txt").read_text().split()[1:] for run in sweep.runs()]
    assert all(device in ("0", "1") and threads == "2" for device, threads in devices)
    assert devices[0] == devices[1] and devices[2] == devices[3]


def test_the_controller_restarts(sweep):
    directory = os.environ.get("LSLURM_DIR", "/var/lib/local-slurm")
    pid_file = f"{directory}/pid/slurmctld.pid"
    if not os.path.exists(pid_file) or not os.access(pid_file, os.W_OK):
        pytest.skip("not the throwaway cluster, or not ours to restart")
    begin(sweep, SLOW)
    time.sleep(1)
    with open(pid_file) as file:
        os.kill(int(file.read()), signal.SIGTERM)  # it saves its state, as an upgrade would have it
    wait_until(lambda: not os.path.exists(pid_file), 60, "the controller's end")
    starter = SLURM.parent / ".ci" / "slurm_start"
    subprocess.run([str(starter)], check=True, capture_output=True, timeout=120)
    assert_whole(sweep)


def test_jobs_run_the_code_that_was_submitted_wherever_they_were_launched(sweep, tmp_path, monkeypatch):
    """A recipe of each kind; between submission and start every module of the checkout is broken."""
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"):  # what a job imports leaves its bytecode beside it
        monkeypatch.delenv(name, raising=False)
    checkout = tmp_path / "checkout"
    for package in ("torchrl_reg", "recipes", "slurm"):
        shutil.copytree(ROOT / package, checkout / package, ignore=shutil.ignore_patterns("__pycache__", "figures"))
    arguments = ("sweep=kinds", "cluster=slurm", "cluster.minutes=10", "check=false", "+cluster.extra.hold=true")
    kinds = Sweep(tmp_path, sweep.name, arguments, checkout)
    kinds.launch()
    for path in checkout.rglob("*.py"):
        path.write_text("raise ImportError('from the checkout')\n")
    ask("scontrol", "release", kinds.array)
    kinds.wait_for_empty_queue(280)
    answer = status(kinds)
    assert f"{kinds.name}: 7 runs: 7 done" in answer, answer
    (copy,) = (kinds.folder / "code").iterdir()
    assert {path.parent.parent.name for path in copy.rglob("*.pyc")} >= {"slurm", "learners", "studies"}


@pytest.mark.parametrize(
    ("setting", "begins", "ends"),
    [
        ("cluster.partition=moon", "cluster.partition must be one of ", "high, low, got moon."),
        ("cluster.gpus=7", "SLURM refused the array: ", "Requested node configuration is not available"),
    ],
)
def test_what_cannot_be_submitted_is_one_sentence_and_leaves_no_folder(sweep, setting, begins, ends):
    done = sweep.launch(setting, ok=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(begins) and ends in line
    assert not sweep.folder.exists()


def test_five_hundred_runs_are_one_array_and_status_is_quick(sweep):
    times = [time.monotonic()]
    sweep.launch("sweep.seeds=500", "sweep.base.algo.frames=1", "cluster.runs_per_job=1", "cluster.parallel_jobs=1")
    times.append(time.monotonic())
    assert "500 runs" in status(sweep)
    # Machines are shared; minutes would mean one question to SLURM a run.
    assert times[1] - times[0] < 120 and time.monotonic() - times[1] < 30


def test_a_multirun_of_a_recipe_goes_to_slurm_without_a_sweep(cluster, tmp_path):
    tmp_path.chmod(0o755)
    recipe = str(ROOT / "tests/lab/recipe/tiny_dqn.py")
    command = [sys.executable, recipe, "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]
    command += ["hydra.launcher.partition=low", "run.seed=0,1", "algo.total_frames=200", "run.progress=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.glob("results/tiny_dqn/cartpole/*/seed=*"))
    assert [folder.name for folder in folders] == ["seed=0", "seed=1"]
    for folder in folders:
        assert json.loads((folder / "done.json").read_text())["frames"] >= 200
        (start,) = json.loads((folder / "provenance.json").read_text())["starts"]
        assert "SLURM_JOB_ID" in start["slurm"]
