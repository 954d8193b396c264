"""What SLURM says about a sweep: which of its runs wait or run, and which partitions there are."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from sweep import SweepError

_ANSWER_SECONDS = 20  # with the controller down, SLURM's commands retry for very long


def has_slurm() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def require_partition(name: str | None) -> None:
    """Refuses a machine without SLURM and a partition that does not exist.

    Raises:
        SweepError: one sentence.
    """
    if not has_slurm():
        raise SweepError(
            "cluster.kind=slurm needs sbatch on PATH, got none; cluster=local runs the same sweep on this machine."
        )
    known = sorted({line.strip() for line in _ask("sinfo", "-h", "-a", "-o", "%R").splitlines()})
    if name is not None and not set(name.split(",")) <= set(known):
        raise SweepError(f"cluster.partition must be one of {', '.join(known)}, got {name}.")


def note_jobs(folder: Path, array: str, elements: Sequence[Sequence[str]]) -> None:
    """Remembers in ``jobs.jsonl`` which element of which array carries which runs."""
    row = {"array": array, "submitted_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "elements": elements}
    with (folder / "jobs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def queued_runs(folder: Path) -> dict[str, str]:
    """SLURM's state (``PENDING``, ``RUNNING``, ...) of each run whose element is in the queue, by run folder.

    Raises:
        SweepError: SLURM does not answer.
    """
    path = folder / "jobs.jsonl"
    if not path.exists() or not has_slurm():
        return {}
    states = _queue()
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        for index, names in enumerate(row["elements"]):
            state = states.get(f"{row['array']}_{index}") or states.get(f"{row['array']}_N/A")
            found |= dict.fromkeys(names, state) if state else {}
    return found


def _queue() -> dict[str, str]:
    lines = _ask("squeue", "--me", "-r", "-h", "-o", "%F_%K %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SweepError(f"SLURM must answer {command[0]}, got {error}.") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise SweepError(f"SLURM must answer {command[0]}, got: {reason}")
    return done.stdout
