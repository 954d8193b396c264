"""A sweep with every kind of interruption ends like an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sweep_harness import Sweep, ask, wait_until

from torchrl_reg.lab import read_metrics, strip_wall_clock

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]


def process_of(run: Path) -> int | None:
    """The process of a run that has learnt a while and, as it naps, has 7 seconds to go: what Slurm takes to kill."""
    checkpoints = [int(path.stem.split("-")[1]) for path in run.glob("checkpoints/checkpoint-*.torchrl")]
    if not checkpoints or max(checkpoints) > 1_600:
        return None
    # Hydra wants '=' escaped in a value.
    pattern = re.escape(str(run)).replace("=", r"\\=")
    found = subprocess.run(["pgrep", "-f", f"tiny_dqn.py.*{pattern}$"], capture_output=True, text=True).stdout.split()
    return int(found[0]) if found else None


def victim(sweep: Sweep, taken: set[Path]) -> tuple[Path, int]:
    """A run that learns right now and its process; none is taken twice."""

    def choose():
        learning = [(run, pid) for run in sweep.runs() if run not in taken and (pid := process_of(run))]
        return random.choice(learning) if learning else None

    run, pid = wait_until(choose, 300, "a run that learns")
    taken.add(run)
    return run, pid


def lives(run: Path) -> list[str]:
    """The element and its restart in each life of a run: ``["123_4 0", "123_4 1"]``."""
    log = run.with_name(run.name + ".log").read_text()
    return [" ".join(found) for found in re.findall(r"^=== .* job (\S+) \(restart (\d+)\)", log, re.MULTILINE)]


def element(run: Path) -> str:
    return lives(run)[-1].split()[0]


def rows(run: Path) -> list[dict]:
    return [strip_wall_clock(row) for row in read_metrics(run / "metrics.jsonl")]


def test_three_kills_a_preemption_and_a_time_out(sweep, tmp_path):
    random.seed(time.time_ns())
    arguments = ("sweep=tiny", "cluster=slurm", "check=false", "cluster.minutes=20", "cluster.signal_seconds=20")
    disturbed = Sweep(tmp_path, sweep.name, arguments)
    disturbed.launch("cluster.parallel_jobs=4")
    taken: set[Path] = set()

    hanging, pid = victim(disturbed, taken)
    os.kill(pid, signal.SIGSTOP)
    passed = int(ask("squeue", "-h", "-j", element(hanging), "-o", "%M").split(":")[-2])
    ask("scontrol", "update", f"JobId={element(hanging)}", f"TimeLimit={passed + 1}")  # minutes; it runs into this

    alone, pid = victim(disturbed, taken)
    os.kill(pid, signal.SIGKILL)
    requeued, _ = victim(disturbed, taken)
    ask("scontrol", "requeue", element(requeued))
    time.sleep(random.random())
    with_its_element, _ = victim(disturbed, taken)
    ask("scancel", "--signal=KILL", element(with_its_element))
    preempted, _ = victim(disturbed, taken)
    node = ask("squeue", "-h", "-j", element(preempted), "-o", "%N").strip()
    higher = ["sbatch", "-p", "high", "-w", node, "--exclusive", "-J", sweep.name, "-o", "/dev/null"]
    ask(*higher, "--wrap", "sleep 1")

    wait_until(lambda: len(lives(hanging)) > 1, 200, "the run that hung is stopped at the limit and goes on")
    ask("scontrol", "update", f"JobId={element(hanging)}", "TimeLimit=20")
    disturbed.wait_for_empty_queue(500)
    assert len(disturbed.finished()) == 11, "the element that was killed does not come back by itself"
    disturbed.launch()
    disturbed.wait_for(12, 300)
    undisturbed = [run for run in (hanging, alone, requeued, with_its_element, preempted) if len(lives(run)) == 1]
    assert not undisturbed

    whole = Sweep(tmp_path, "whole", ("sweep=tiny", "cluster=local", "check=false"))
    whole.launch(seconds=700)
    assert len(whole.finished()) == 12
    for run in whole.finished():
        assert rows(disturbed.folder / run.relative_to(whole.folder)) == rows(run)
        assert len(rows(run)) > 20
