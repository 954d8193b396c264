"""``slurm/status.py`` on folders made by hand."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from sweep_harness import SLURM

from slurm.status import RunStatus, headline, summary, sweep_status
from slurm.sweep_folder import Submitted, SweepFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four seeds: done, failed, at work here, never begun."""
    sweep = {"recipe": "dqn", "base": {}, "grid": {"env": ["cartpole"]}, "variants": [], "seeds": 4, "code": {}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    for seed, frames in ((0, 1000), (1, 200), (2, 500)):
        run = tmp_path / "dqn" / "cartpole" / "default" / f"seed={seed}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("algo:\n  total_frames: 1000\n  tau: 1\n")
        rows = [
            {"event": "train", "frames": frames, "return_mean": 7.0, "fps": 50.0},
            {"event": "eval", "frames": frames, "return_greedy_mean": 10.0 * (seed + 1)},
            {"event": "train", "frames": frames, "return_mean": None, "fps": 100.0},
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"event": "tr'
        (run / "metrics.jsonl").write_text(text)
    runs = tmp_path / "dqn" / "cartpole" / "default"
    (runs / "seed=0" / "done.json").write_text("{}")
    (runs / "seed=1.failed").write_text("{}")
    (runs / "seed=1.log").write_text("Traceback\nValueError: it broke\n\n")
    return tmp_path


@pytest.fixture(autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH whose ``squeue`` and ``sacct`` print the files of that name in it: nothing at first."""
    commands = tmp_path_factory.mktemp("commands")
    for name in ("sbatch", "squeue", "sacct"):
        (commands / f"{name}.txt").touch()
        (commands / name).write_text(f"#!/bin/sh\ncat '{commands}/{name}.txt'\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return commands


def submitted(folder: Path, seeds: Sequence[int], log: str = "") -> None:
    """Array 77, an element a seed."""
    (folder / "jobs").mkdir(exist_ok=True)
    for index in range(len(seeds) if log else 0):
        (folder / "jobs" / f"77_{index}_0_log.out").write_text(log)
    SweepFolder(folder).note(Submitted("77", [[f"dqn/cartpole/default/seed={seed}"] for seed in seeds]))


def test_a_controller_that_does_not_answer_makes_no_run_fail(folder, slurm, capsys):
    submitted(folder, (0, 1, 2, 3), log="slurm says nothing new\n")
    (slurm / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1\n")
    runs = sweep_status(SweepFolder(folder))
    assert [run.state for run in runs] == ["done", "failed", "unknown", "unknown"]
    assert runs[2].last_line.startswith("submitted, last row ") and runs[3].last_line == "submitted, no row yet"
    assert "squeue failed: slurm_load_jobs error: Unable to contact controller." in capsys.readouterr().err
    assert "unknown:\n  dqn/cartpole/default/seed=2: submitted, last row" in summary("x", runs)


def test_what_was_cancelled_is_called_so_with_a_reason(folder, slurm):
    submitted(folder, (2, 3))
    (slurm / "sacct.txt").write_text("77_0|CANCELLED by 1000\n77_1|TIMEOUT\n")
    runs = sweep_status(SweepFolder(folder))
    assert (runs[2].state, runs[2].last_line) == ("cancelled", "its job was cancelled by 1000")
    assert runs[3].state == "failed" and runs[3].last_line.startswith("its job ended (TIMEOUT): it left no word")
    (slurm / "sacct").write_text("#!/bin/sh\nexit 1\n")
    runs = sweep_status(SweepFolder(folder))
    assert runs[3].state == "failed" and "may have been cancelled while it waited" in runs[3].last_line
    (slurm / "sacct").write_text("#!/bin/sh\necho '77_0|REQUEUED'\n")  # it never ran again
    runs = sweep_status(SweepFolder(folder))
    assert (runs[2].state, runs[2].last_line) == ("cancelled", "its job was cancelled after it was requeued")
    submitted(folder, (2, 3), log="slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T11:00:00 ***\n")
    assert [run.state for run in sweep_status(SweepFolder(folder))][2:] == ["cancelled", "cancelled"]


def test_why_jobs_wait_and_what_to_change(folder, slurm):
    submitted(folder, (1, 2, 3))
    (slurm / "squeue.txt").write_text(
        "77_0|PENDING|PartitionTimeLimit\n77_1|PENDING|Resources\n77_2|PENDING|launch failed requeued held\n"
    )
    runs = sweep_status(SweepFolder(folder))
    assert [run.state for run in runs[1:]] == ["waiting"] * 3
    assert [run.reason for run in runs] == ["", "PartitionTimeLimit", "Resources", "launch failed requeued held"]
    text = summary("x", runs)
    assert "  1 for PartitionTimeLimit: never starts: lower cluster.minutes to the partition's limit" in text
    assert "held: could not start on its node and is held: scontrol release JOB" in text


def test_a_single_job_is_no_array(folder, slurm):
    submitted(folder, (3,))
    (slurm / "squeue.txt").write_text("77_N/A|RUNNING|None\n")
    assert states(folder)[-1] == "running"


def test_control_codes_of_logs_reach_no_terminal(folder):
    log = folder / "dqn/cartpole/default/seed=1.log"
    log.write_bytes(b"\x1b[31mValueError: \x1b]0;owned\x07\x1b[2J \xc2\x9b31m it broke\x1b[0m\n")
    text = summary("x", sweep_status(SweepFolder(folder)))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "ValueError: \\x1b]0;owned\\x07\\x1b[2J \\x9b31m it broke" in text
    (folder / "dqn/cartpole/default/seed=1.failed").write_text(json.dumps({"last_line": "a\x1b[2Jb"}))
    assert "seed=1: a\\x1b[2Jb" in summary("x", sweep_status(SweepFolder(folder)))


def test_a_run_that_stopped_by_itself_has_failed(folder):
    run = folder / "dqn/cartpole/default/seed=2"
    (run / "failed.json").write_text(json.dumps({"last_line": "loss is not finite from frame 80 on"}))
    status = sweep_status(SweepFolder(folder))[2]
    assert (status.state, status.last_line) == ("failed", "loss is not finite from frame 80 on")


def test_states_frames_and_returns(folder):
    with (folder / "dqn/cartpole/default/seed=2/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = sweep_status(SweepFolder(folder))
    assert [run.state for run in runs] == ["done", "failed", "running", "missing"]
    assert [run.frames for run in runs] == [1000, 200, 500, 0]
    assert [run.total for run in runs] == [1000, 1000, 1000, 0]
    assert [run.last_return for run in runs] == [10.0, 20.0, 30.0, None]
    assert [run.fps for run in runs] == [0, 0, 100.0, 0]
    assert runs[1].last_line == "ValueError: it broke"


def states(folder: Path) -> list[str]:
    return [run.state for run in sweep_status(SweepFolder(folder))]


def test_what_was_launched_and_left_the_queue_undone_has_failed(folder):
    jobs = folder / "jobs"
    jobs.mkdir()
    (jobs / "77_1_0_log.out").write_text("srun: error: Out Of Memory\n")
    runs = [f"dqn/cartpole/default/seed={seed}" for seed in (0, 3)]
    SweepFolder(folder).note(Submitted("77", [[runs[0]], [runs[1]]]))
    last = sweep_status(SweepFolder(folder))[-1]
    assert (last.state, last.last_line) == ("failed", "its job ended: srun: error: Out Of Memory")


TRACEBACK = """submitit ERROR (2026-11-23 12:56:11,387) - Submitted job triggered an exception
Traceback (most recent call last):
  File "/copy/recipes/dqn.py", line 3, in <module>
    import scypy
ModuleNotFoundError: No module named 'scypy'
srun: error: lnode1: task 0: Exited with exit code 1
"""


@pytest.mark.parametrize("others", [(), (2,)])
def test_an_error_of_an_element_shows_and_nobody_is_told_to_launch_it_again(folder, slurm, others):
    (slurm / "sacct.txt").write_text("77|FAILED\n77_0|FAILED\n77_1|CANCELLED by 0\n")
    (folder / "dqn/cartpole/default/seed=1.failed").write_text('{"returncode": 1, "last_line": "KeyError: 3"}')
    submitted(folder, (3, *others))
    (folder / "jobs" / ("77_0_0_log.out" if others else "77_0_log.out")).write_text(TRACEBACK)
    if not others:
        (folder / "dqn/cartpole/default/seed=2/done.json").write_text("{}")
    runs = sweep_status(SweepFolder(folder))
    assert runs[3].last_line == "its job ended (FAILED): ModuleNotFoundError: No module named 'scypy'"
    assert [run.own_error for run in runs] == [False, True, False, True]
    text = summary("x", runs)
    assert ("launch.py with the same sweep submits" in text) == bool(others)
    assert text.endswith(
        "2 failed by an error of their own and will fail again until its cause is removed; other code or another base "
        "needs another name=."
    )


@pytest.mark.parametrize(("returncode", "again"), [(-9, True), (137, True), (-1, True), (1, False), (2, False)])
def test_what_a_signal_or_a_full_disk_ended_may_be_launched_again(folder, returncode, again):
    for name in ("seed=2", "seed=3"):
        (folder / "dqn/cartpole/default" / name).mkdir(exist_ok=True)
        (folder / "dqn/cartpole/default" / name / "done.json").write_text("{}")
    (folder / "dqn/cartpole/default/seed=1.failed").write_text(json.dumps({"returncode": returncode, "last_line": "x"}))
    text = summary("x", sweep_status(SweepFolder(folder)))
    assert ("submits what is missing, cancelled or failed again" in text) == again
    assert ("1 failed by an error of their own" in text) != again


def test_while_this_machine_launches_what_has_not_begun_waits(folder):
    with SweepFolder(folder).lock():
        assert states(folder)[-1] == "waiting"
    assert states(folder)[-1] == "missing"


def test_runs_of_earlier_launches_are_not_forgotten(folder):
    SweepFolder(folder).note(Submitted(None, [["dqn/acrobot/default/seed=0"]]))
    assert len(states(folder)) == 5


def test_torn_rows_are_left_out(folder):
    (folder / "jobs.jsonl").write_text('{"array": "1", "elem')
    SweepFolder(folder).note(Submitted(None, [["dqn/cartpole/default/seed=3"]]))
    assert [launch.array for launch in SweepFolder(folder).launches()] == [None]
    with (folder / "dqn/cartpole/default/seed=0/metrics.jsonl").open("a") as file:
        file.write("\0\0\0\nnull\n")
    assert sweep_status(SweepFolder(folder))[0].last_return == 10.0


def test_the_summary_counts_and_tells_the_time_left(folder):
    with (folder / "dqn/cartpole/default/seed=2/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = summary("mine", sweep_status(SweepFolder(folder)))
    assert text.splitlines()[0] == (
        "mine: 4 runs: 1 done, 1 running, 1 failed, 1 missing, 1.7k of 4k frames, 100 frames/s, 0:00:05 left"
    )
    assert "dqn/cartpole/default/seed=1: ValueError: it broke" in text
    (line,) = (line for line in text.splitlines() if line.startswith("dqn/cartpole/default "))
    assert line.split()[1:] == ["1/4", "1", "0", "1", "42%", "20"]


def test_asking_changes_nothing(folder):
    before = sorted(folder.rglob("*"))
    sweep_status(SweepFolder(folder))
    assert sorted(folder.rglob("*")) == before


def test_the_time_left_is_that_of_running_and_waiting_runs():
    runs = [
        RunStatus("a", "running", frames=50, total=100, fps=10.0),
        RunStatus("b", "waiting"),
        RunStatus("c", "failed"),
    ]
    assert headline("x", runs).endswith("50 of 300 frames, 10 frames/s, 0:00:15 left")
    assert summary("x", [RunStatus("a/b/c/seed=0", "missing")]).splitlines()[0] == "x: 1 runs: 1 missing"


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SLURM / "status.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_line(folder):
    assert "1 done, 1 failed, 2 missing" in ask(str(folder)).stdout
    assert "1 done, 1 failed" in ask(folder.name, "--root", str(folder.parent), "--watch", "--every", "0.1").stdout
    rows = [json.loads(line) for line in ask(str(folder), "--json").stdout.splitlines()]
    assert rows[0]["state"] == "done" and rows[0]["frames"] == 1000
    refused = ask("nonsense", "--root", str(folder))
    assert refused.returncode == 1
    (line,) = refused.stderr.strip().splitlines()
    assert line.endswith("nonsense must be the folder of a launched sweep, got one without sweep.yaml.")


def test_five_hundred_runs_are_read_quickly(folder):
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"seeds": 500}))
    row = json.dumps(
        {"event": "train", "frames": 10, "return_mean": 1.0, "fps": 5.0, **{f"x{i}": i for i in range(30)}}
    )
    for seed in range(4, 500):
        run = folder / "dqn" / "cartpole" / "default" / f"seed={seed}"
        os.mkdir(run)
        (run / "config.yaml").write_text("algo:\n  total_frames: 1000\n" + "a: 1\n" * 60)
        (run / "metrics.jsonl").write_text(f"{row}\n" * 100)
    started = time.process_time()
    assert len(sweep_status(SweepFolder(folder))) == 500
    assert time.process_time() - started < 4, "0.3 s on a quiet machine"
