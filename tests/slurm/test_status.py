"""``slurm/status.py`` on hand-written folders."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from sweep_harness import SLURM

from slurm.status import RunStatus, headline, main, summary, sweep_status
from slurm.sweep_folder import Submitted, SweepFolder
from torchrl_reg.lab.errors import UserError

RUNS = "dqn/cartpole/default"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four seeds: done, failed, at work here, never begun."""
    sweep = {"recipe": "dqn", "base": {}, "grid": {"env": ["cartpole"]}, "variants": [], "seeds": 4, "code": {}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    for seed, frames in enumerate((1000, 200, 500)):
        run = tmp_path / RUNS / f"seed={seed}"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("algo:\n  total_frames: 1000\n  tau: 1\n")
        rows = [
            {"event": "train", "frames": frames, "return_mean": 7.0, "fps": 50.0},
            {"event": "eval", "frames": frames, "return_greedy_mean": 10.0 * (seed + 1)},
            {"event": "train", "frames": frames, "return_mean": 8.0, "fps": 100.0},  # exploring
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows) + '{"event": "tr'
        (run / "metrics.jsonl").write_text(text)
    (tmp_path / RUNS / "seed=0/done.json").write_text("{}")
    (tmp_path / RUNS / "seed=1.failed").write_text("{}")
    (tmp_path / RUNS / "seed=1.log").write_text("Traceback\nValueError: it broke\n\n")
    return tmp_path


@pytest.fixture(autouse=True)
def says(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """``says(squeue="echo 3")`` writes a fake SLURM command, first on PATH; by default they print nothing."""
    commands = tmp_path_factory.mktemp("commands")

    def write(**scripts: str) -> None:
        for name, script in scripts.items():
            (commands / name).write_text(f"#!/bin/sh\n{script}\n")
            (commands / name).chmod(0o755)

    write(sbatch="", squeue="", sacct="")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return write


def submitted(folder: Path, *seeds: int, logs: Sequence[str] = ()) -> None:
    """Array 77, an element a seed."""
    (folder / "jobs").mkdir(exist_ok=True)
    for index, log in enumerate(logs):
        (folder / f"jobs/77{f'_{index}' * (len(seeds) > 1)}_0_log.out").write_text(log)
    SweepFolder(folder).record(Submitted("77", [[f"{RUNS}/seed={seed}"] for seed in seeds]))


def states(folder: Path) -> list[str]:
    return [run.state for run in sweep_status(SweepFolder(folder))]


def test_states_frames_returns_and_the_time_left(folder):
    with (folder / RUNS / "seed=2/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = sorted(folder.rglob("*"))
        runs = sweep_status(SweepFolder(folder))
        assert sorted(folder.rglob("*")) == before, "asking changes nothing"
    assert [(run.state, run.frames, run.total, run.last_return, run.fps, run.last_line) for run in runs] == [
        ("done", 1000, 1000, 10.0, 0.0, ""),
        ("failed", 200, 1000, 20.0, 0.0, "ValueError: it broke"),
        ("running", 500, 1000, 30.0, 100.0, ""),
        ("missing", 0, 0, None, 0.0, ""),
    ]
    text = summary("mine", runs)
    assert text.splitlines()[0] == (
        "mine: 4 runs: 1 done, 1 running, 1 failed, 1 missing, 1.7k of 4k frames, 100 frames/s, 0:00:05 left"
    )
    assert f"{RUNS}/seed=1: ValueError: it broke" in text
    (line,) = (line for line in text.splitlines() if line.startswith(f"{RUNS} "))
    assert line.split()[1:] == ["1/4", "1", "0", "1", "42%", "20"]


def test_the_time_left_is_that_of_running_and_waiting_runs():
    busy = RunStatus("a", "running", frames=50, total=100, fps=10.0)
    runs = [busy, RunStatus("b", "waiting"), RunStatus("c", "failed")]
    assert headline("x", runs).endswith("50 of 300 frames, 10 frames/s, 0:00:15 left")
    assert summary("x", [RunStatus("a/b/c/seed=0", "missing")]).splitlines()[0] == "x: 1 runs: 1 missing"


def test_a_controller_that_does_not_answer_makes_no_run_fail(folder, says, capsys):
    submitted(folder, 0, 1, 2, 3, logs=["slurm says nothing new\n"] * 4)
    says(squeue="echo 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1")
    runs = sweep_status(SweepFolder(folder))
    assert [run.state for run in runs] == ["done", "failed", "unknown", "unknown"]
    assert runs[2].last_line.startswith("submitted, last row ") and runs[3].last_line == "submitted, no row yet"
    assert "squeue failed: slurm_load_jobs error: Unable to contact controller." in capsys.readouterr().err
    assert f"unknown:\n  {RUNS}/seed=2: submitted, last row" in summary("x", runs)


WORDLESS = "its log is empty; it may have been cancelled while it waited"
STEP = "slurmstepd: error: *** JOB 77 ON n1 CANCELLED AT 2026-11-22T11:00:00 ***"


@pytest.mark.parametrize(
    ("sacct", "log", "state", "line"),
    [
        ("echo '77_1|CANCELLED by 1000'", "", "cancelled", "its job was cancelled by 1000"),
        ("echo '77_1|TIMEOUT'", "", "failed", f"its job ended (TIMEOUT): {WORDLESS}"),
        ("exit 1", "", "failed", f"its job ended: {WORDLESS}"),
        ("echo '77_1|REQUEUED'", "", "cancelled", "its job was cancelled after it was requeued"),
        ("", STEP, "cancelled", f"its job was cancelled: {STEP}"),
        ("", "srun: error: Out Of Memory\n", "failed", "its job ended: srun: error: Out Of Memory"),
    ],
)
def test_how_a_job_that_left_the_queue_undone_ended(folder, says, sacct, log, state, line):
    submitted(folder, 0, 3, logs=["", log])
    says(sacct=sacct)
    last = sweep_status(SweepFolder(folder))[-1]
    assert (last.state, last.last_line) == (state, line)


def test_why_jobs_wait_and_what_to_change(folder, says):
    submitted(folder, 1, 2, 3)
    reasons = ["PartitionTimeLimit", "Resources", "launch failed requeued held"]
    says(squeue="".join(f"echo '77_{i}|PENDING|{reason}'\n" for i, reason in enumerate(reasons)))
    runs = sweep_status(SweepFolder(folder))
    assert [run.state for run in runs[1:]] == ["waiting"] * 3
    assert [run.reason for run in runs] == ["", *reasons]
    text = summary("x", runs)
    assert "  1 for PartitionTimeLimit: never starts: lower cluster.minutes to the partition's limit" in text
    assert "held: could not start on its node and is held: scontrol release JOB" in text


def test_a_single_job_is_no_array(folder, says):
    submitted(folder, 3)
    says(squeue="echo '77_N/A|RUNNING|None'")
    assert states(folder)[-1] == "running"


def test_control_codes_of_logs_reach_no_terminal(folder):
    log = b"\x1b[31mValueError: \x1b]0;owned\x07\x1b[2J \xc2\x9b31m it broke\x1b[0m\n"
    (folder / RUNS / "seed=1.log").write_bytes(log)
    text = summary("x", sweep_status(SweepFolder(folder)))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "ValueError: \\x1b]0;owned\\x07\\x1b[2J \\x9b31m it broke" in text
    (folder / RUNS / "seed=1.failed").write_text(json.dumps({"last_line": "a\x1b[2Jb"}))
    assert "seed=1: a\\x1b[2Jb" in summary("x", sweep_status(SweepFolder(folder)))


TRACEBACK = """submitit ERROR (2026-11-23 12:56:11,387) - Submitted job triggered an exception
Traceback (most recent call last):
  File "/copy/recipes/dqn.py", line 3, in <module>
    import scypy
ModuleNotFoundError: No module named 'scypy'
srun: error: lnode1: task 0: Exited with exit code 1
"""


@pytest.mark.parametrize("others", [(), (2,)])
def test_an_error_of_an_element_shows_and_nobody_is_told_to_launch_it_again(folder, says, others):
    says(sacct="echo '77|FAILED'; echo '77_0|FAILED'; echo '77_1|CANCELLED by 0'")
    (folder / RUNS / "seed=1.failed").write_text('{"returncode": 1, "last_line": "KeyError: 3"}')
    submitted(folder, 3, *others, logs=[TRACEBACK])
    if not others:
        (folder / RUNS / "seed=2/done.json").write_text("{}")
    runs = sweep_status(SweepFolder(folder))
    assert runs[3].last_line == "its job ended (FAILED): ModuleNotFoundError: No module named 'scypy'"
    assert [run.own_error for run in runs] == [False, True, False, True]
    text = summary("x", runs)
    assert ("slurm/launch.py with the same sweep submits" in text) == bool(others)
    assert text.endswith(
        "2 ended with an exception and will fail again until its cause is removed; other code or another base "
        "needs another name=."
    )


@pytest.mark.parametrize(("returncode", "again"), [(-9, True), (137, True), (-1, True), (1, False), (127, False)])
def test_what_a_signal_or_a_full_disk_ended_may_be_launched_again(folder, returncode, again):
    for seed in (2, 3):
        shutil.copytree(folder / RUNS / "seed=0", folder / RUNS / f"seed={seed}", dirs_exist_ok=True)
    (folder / RUNS / "seed=1.failed").write_text(json.dumps({"returncode": returncode, "last_line": "x"}))
    text = summary("x", sweep_status(SweepFolder(folder)))
    assert ("submits what is missing, cancelled or failed again" in text) == again
    assert ("1 ended with an exception" in text) != again


def test_a_run_that_stopped_by_itself_failed_and_what_is_being_launched_waits(folder):
    (folder / RUNS / "seed=2/failed.json").write_text(json.dumps({"last_line": "loss is not finite from frame 80 on"}))
    with SweepFolder(folder).lock():
        assert states(folder) == ["done", "failed", "failed", "waiting"]
        with (
            pytest.raises(UserError, match=rf"^{folder} is being launched by process {os.getpid()} on .* since 20"),
            SweepFolder(folder).lock(),
        ):
            pass
    assert states(folder)[-1] == "missing"
    assert sweep_status(SweepFolder(folder))[2].last_line == "loss is not finite from frame 80 on"


def test_torn_rows_are_left_out_and_earlier_launches_are_not_forgotten(folder):
    (folder / "jobs.jsonl").write_text('{"array": "1", "elem')
    SweepFolder(folder).record(Submitted(None, [["dqn/acrobot/default/seed=0"]]))
    assert [launch.array for launch in SweepFolder(folder).launches()] == [None]
    with (folder / RUNS / "seed=0/metrics.jsonl").open("a") as file:
        file.write("\0\0\0\nnull\n")
    runs = sweep_status(SweepFolder(folder))
    assert runs[0].last_return == 10.0 and runs[4].folder == "dqn/acrobot/default/seed=0"


def test_numbers_that_are_none_stop_no_status(folder):
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    many = "9" * 5000
    (folder / RUNS / "seed=2/config.yaml").write_text(f"algo:\n  total_frames: {many}\n")
    (folder / RUNS / "seed=1.failed").write_text(json.dumps({"returncode": many, "last_line": "x"}))
    assert [run.total for run in sweep_status(SweepFolder(folder))] == [1000, 1000, 0, 0]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"base": {"algo.total_frames": "soon"}}))
    assert [run.total for run in sweep_status(SweepFolder(folder))] == [0] * 4


def ask(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SLURM / "status.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_line(folder):
    assert "1 done, 1 failed" in ask(folder.name, "--root", str(folder.parent), "--watch", "--every", "0.1").stdout
    rows = [json.loads(line) for line in ask(str(folder), "--json").stdout.splitlines()]
    assert rows[0]["state"] == "done" and rows[0]["frames"] == 1000
    refused = ask("nonsense", "--root", str(folder))
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "nonsense must be the folder of a launched sweep, got no folder." in refused.stderr


def test_watching_repeats_until_nothing_goes_on(folder, monkeypatch, capsys):
    slept, going_on = [], contextlib.ExitStack()
    going_on.enter_context(SweepFolder(folder).lock())  # while it is being launched, a run waits
    monkeypatch.setattr(sys, "argv", ["status.py", str(folder), "--watch"])
    monkeypatch.setattr("slurm.status.time.sleep", lambda seconds: slept.append(seconds) or going_on.close())
    main()
    shown = capsys.readouterr().out
    assert slept == [30.0] and shown.count(" runs: ") == 2
    assert "waiting" in shown.partition("\n\nmunchausen")[0] and "0 waiting" not in shown
    monkeypatch.setattr(sys, "argv", ["status.py", str(folder), "--every", "0"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--every must be > 0 seconds, got 0" in capsys.readouterr().err


def test_five_hundred_runs_are_read_quickly(folder):
    sweep = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"seeds": 500}))
    row = json.dumps({"event": "train", "frames": 10, "return_mean": 1.0, "fps": 5.0} | {f"x{i}": i for i in range(30)})
    for seed in range(4, 500):
        run = folder / RUNS / f"seed={seed}"
        run.mkdir()
        (run / "config.yaml").write_text("algo:\n  total_frames: 1000\n" + "a: 1\n" * 60)
        (run / "metrics.jsonl").write_text(f"{row}\n" * 100)
    started = time.process_time()
    assert len(states(folder)) == 500
    assert time.process_time() - started < 4, "0.3 s on a quiet machine"
