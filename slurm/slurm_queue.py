"""Queries to SLURM: its partitions, and which runs of a sweep are pending or running."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from slurm.sweep_folder import SweepFolder
from torchrl_reg.lab.errors import UserError

Value = TypeVar("Value")
_TIMEOUT_SECONDS = 20  # with the controller down, SLURM's commands retry for minutes

#: Pending reason -> its meaning and remedy.
ADVICE = {
    "PartitionTimeLimit": "never starts: lower cluster.minutes to the partition's limit (sinfo -o '%P %l')",
    "PartitionNodeLimit": "never starts: the partition has no such node; lower cluster.gpus, threads or memory_gb",
    "PartitionConfig": "never starts: the partition does not accept such a job; choose another cluster.partition",
    "PartitionDown": "waits for an administrator: the partition is down; choose another cluster.partition",
    "BadConstraints": "never starts: no node has cluster.constraint",
    "AccountNotAllowed": "never starts: choose another cluster.account or partition",
    "QOSNotAllowed": "never starts: choose another cluster.qos",
    "InvalidAccount": "never starts: choose another cluster.account",
    "InvalidQOS": "never starts: choose another cluster.qos",
    "JobHeldUser": "is held: scontrol release JOB",
    "JobHeldAdmin": "is held by an administrator",
    "launch_failed_requeued_held": "could not start on its node and is held: scontrol release JOB",
    "JobArrayTaskLimit": "cluster.parallel_jobs run at a time",
    "BeginTime": "was requeued and starts again in a minute or two",
    "Resources": "waits for free nodes",
    "Priority": "waits its turn",
}
_LIMITED = "a limit of your account: submit fewer or shorter jobs (cluster.minutes, cluster.parallel_jobs)"


@dataclass(frozen=True)
class Queued:
    """A job in the queue: SLURM's state (``PENDING``, ``RUNNING``, ...) and why it waits, if it does."""

    state: str
    reason: str = ""


def advice(reason: str) -> str:
    """Meaning and remedy of a pending reason; empty for an unknown reason.

    >>> advice("Resources"), advice("QOSMaxCpuPerUserLimit")[:23], advice("Nonsense")
    ('waits for free nodes', 'a limit of your account', '')
    """
    known = ADVICE.get(reason.replace(" ", "_"), "")
    return known or (_LIMITED if reason.startswith(("QOS", "Assoc", "Max")) else "")


def has_slurm() -> bool:
    """True if jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None


def require_partition(name: str | None) -> None:
    """Checks that SLURM is here and has the partition.

    Raises:
        UserError: it is not, or has not.
    """
    if not has_slurm():
        instead = "cluster=local runs the same sweep on this machine."
        raise UserError(f"cluster.kind=slurm needs sbatch on PATH, got none; {instead}")
    known = sorted({line.strip() for line in _query("sinfo", "-h", "-a", "-o", "%R").splitlines()})
    if name is not None and not set(name.split(",")) <= set(known):
        raise UserError(f"cluster.partition must be one of {', '.join(known)}, got {name}.")


def queued_runs(folder: SweepFolder) -> dict[str, Queued]:
    """Each run whose element is in the queue, by run folder.

    Raises:
        UserError: SLURM does not answer.
    """
    if not _arrays(folder) or not has_slurm():
        return {}
    lines = _query("squeue", "--me", "-a", "-r", "-h", "-o", "%F_%K|%T|%r").splitlines()
    jobs = (line.split("|", 2) for line in lines if line.strip())
    return _by_run(folder, {job.removesuffix("_N/A"): Queued(state, reason) for job, state, reason in jobs})


def ended_runs(folder: SweepFolder) -> dict[str, str]:
    """State of the last job of each run in SLURM's accounting (``CANCELLED by 0``, ``TIMEOUT``, ...), by run folder.

    Empty without accounting.
    """
    lines: list[str] = []
    with suppress(UserError):
        if arrays := _arrays(folder):
            lines = _query("sacct", "-n", "-X", "-P", "-j", ",".join(arrays), "-o", "JobID,State").splitlines()
    return _by_run(folder, dict(line.split("|", 1) for line in lines if "|" in line))


def _arrays(folder: SweepFolder) -> list[str]:
    return sorted({launch.array for launch in folder.launches() if launch.array is not None})


def _by_run(folder: SweepFolder, by_job: Mapping[str, Value]) -> dict[str, Value]:
    """The value of each run's job; the later of two launches wins."""
    return {run: by_job[job] for launch in folder.launches() for run, job in launch.jobs() if job in by_job}


def _query(*command: str) -> str:
    # SQUEUE_STATES and the like would hide jobs, which would then be submitted again.
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SINFO_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, env=plain)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} failed: {error}.") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise UserError(f"{command[0]} failed: {reason.rstrip('.')}.")
    return done.stdout
