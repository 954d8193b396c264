"""What SLURM says: which partitions there are, and which runs of a sweep wait or run."""

from __future__ import annotations

import os
import shutil
import subprocess

from sweep import SweepError
from sweep_folder import SweepFolder

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


def queued_runs(folder: SweepFolder) -> dict[str, str]:
    """SLURM's state (``PENDING``, ``RUNNING``, ...) of each run whose element is in the queue, by run folder.

    Raises:
        SweepError: SLURM does not answer.
    """
    launches = [launch for launch in folder.launches() if launch.array is not None]
    if not launches or not has_slurm():
        return {}
    states = _queue()
    found: dict[str, str] = {}
    for launch in launches:
        for index, names in enumerate(launch.elements):
            # A single element is no array to submitit.
            state = states.get(f"{launch.array}_{index}") or states.get(f"{launch.array}_N/A")
            found |= dict.fromkeys(names, state) if state else {}
    return found


def _queue() -> dict[str, str]:
    lines = _ask("squeue", "--me", "-a", "-r", "-h", "-o", "%F_%K %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


def _ask(*command: str) -> str:
    # SQUEUE_STATES and the like would hide jobs, and those be submitted again.
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SINFO_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, env=plain)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SweepError(f"SLURM must answer {command[0]}, got {error}.") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise SweepError(f"SLURM must answer {command[0]}, got: {reason}")
    return done.stdout
