"""Where a sweep runs, and how its runs become one submitit array."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit

from slurm.array_element import ArrayElement, Commands
from slurm.snapshot import Code, recipe_path
from slurm.sweep import PlannedRun, override
from torchrl_reg.lab.errors import UserError

_PLACE = ("partition", "account", "qos", "constraint")  # called the same by sbatch


@dataclass
class Cluster:
    """Where and with what; counts are per job, and a job is an element of the array."""

    kind: str = "slurm"  # slurm, local or debug
    partition: str | None = None  # null: SLURM's default
    account: str | None = None  # that is charged
    qos: str | None = None  # quality of service, which may set limits and priority
    constraint: str | None = None  # features a node must have
    gpus: int = 0
    runs_per_job: int = 1  # processes side by side in one job: several small runs fill a GPU
    seeds_per_run: int = 1  # seeds of one setting trained together in a process (run.seeds), at a third of the cost
    threads: int = 1  # CPUs of each process
    memory_gb: float | None = None  # of the job; null: the partition's default
    minutes: int = 240  # of the job; what is not done by then is queued again
    signal_seconds: int = 90  # how long before the end the runs are asked to write a checkpoint and stop
    requeues: int = 1000  # after time-outs
    retries: int = 2  # of a run that a signal killed, at once
    parallel_jobs: int = 256  # elements at a time (local: jobs at a time)
    setup: list[str] = field(default_factory=list)  # shell lines before the runs: module load, conda activate
    extra: dict[str, Any] = field(default_factory=dict)  # further sbatch options, such as {nodelist: gpu7}

    def validate(self) -> None:
        if self.kind not in ("slurm", "local", "debug"):
            raise UserError(f"cluster.kind must be slurm, local or debug, got {self.kind}.")
        least = dict.fromkeys(("runs_per_job", "seeds_per_run", "threads", "minutes", "parallel_jobs"), 1)
        for name, limit in (least | dict.fromkeys(("gpus", "signal_seconds", "requeues", "retries"), 0)).items():
            if getattr(self, name) < limit:
                raise UserError(f"cluster.{name} must be at least {limit}, got {getattr(self, name)}.")
        if self.kind == "slurm" and self.signal_seconds > 30 * self.minutes:
            raise UserError(
                f"cluster.signal_seconds must be at most half of cluster.minutes, got {self.signal_seconds} s "
                f"of {60 * self.minutes} s."
            )


def elements(runs: Sequence[PlannedRun], folder: Path, copy: Path, code: Code, cluster: Cluster) -> list[ArrayElement]:
    """``runs_per_job`` runs, of one seed or several, to an element of the array."""
    size = cluster.runs_per_job
    more: dict[str, Any] = {name: getattr(cluster, name) for name in ("threads", "retries", "minutes")}
    more["digest"] = code.digest
    if cluster.kind == "slurm":  # the rest is for the requeue
        more["grace_seconds"] = max(3.0, cluster.signal_seconds - 30.0)
    processes = [(run.folders, command(run, folder, copy)) for run in runs]
    return [
        ArrayElement(Commands(str(folder), str(copy), code.label, processes[start : start + size], **more))
        for start in range(0, len(runs), size)
    ]


def command(run: PlannedRun, folder: Path, code: Path) -> tuple[str, ...]:
    """The command line of a run."""
    where = override("run.dir", str(folder / run.folder))
    return (sys.executable, str(recipe_path(run.recipe, code)), *run.overrides, where)


def submit(jobs: Sequence[ArrayElement], folder: Path, name: str, cluster: Cluster) -> str:
    """Submits one array and returns its id.

    Raises:
        UserError: sbatch refused it.
    """
    executor = _executor(folder, name, cluster, Path(jobs[0].commands.code))
    try:
        # submitit prints what sbatch says and raises it, too.
        with _without_conflicting_defaults(cluster), contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0])
        said = f"{reason.rstrip('.')}; it asked for {_asked(len(jobs), cluster)}; {_change(reason)}."
        raise UserError(f"SLURM refused the array: {said}") from None
    return submitted[0].job_id.partition("_")[0]


# Words of sbatch's error -> what to change.
_CHANGES = {
    "array specification": "raise cluster.runs_per_job, as the site allows fewer jobs",
    "time limit": "lower cluster.minutes (sinfo -o '%P %l' shows the limits)",
    "memory": "lower cluster.memory_gb",
    "node configuration": "lower cluster.gpus, cluster.memory_gb, cluster.threads or cluster.runs_per_job",
    "cpu count": "lower cluster.threads or cluster.runs_per_job",
    "gres": "lower cluster.gpus",
    "qos": "choose another cluster.qos, or ask for less with cluster.minutes or cluster.runs_per_job",
    "account": "choose another cluster.account or cluster.partition",
    "feature": "choose another cluster.constraint",
    "partition": "choose another cluster.partition",
}


def _change(reason: str) -> str:
    """Which setting to change, by what sbatch said."""
    known = (change for words, change in _CHANGES.items() if words in reason.lower())
    return next(known, "lower what your site does not allow")


def _asked(jobs: int, cluster: Cluster) -> str:
    """What the array asked for, by setting."""
    named = ("gpus", "runs_per_job", "threads", "memory_gb", "minutes", *_PLACE)
    chosen = {name: getattr(cluster, name) for name in named if getattr(cluster, name)} | cluster.extra
    shown = (f"cluster.{'extra.' * (name in cluster.extra)}{name}={value}" for name, value in chosen.items())
    return f"{jobs} {'job' if jobs == 1 else 'jobs'} of {', '.join(shown)}"


def sbatch_text(number: int, folder: Path, name: str, cluster: Cluster, code: Path) -> str:
    """The sbatch script for an array of ``number`` elements."""
    executor = _executor(folder, name, cluster, code)
    if number > 1:
        executor.parameters["map_count"] = number
    return executor._make_submission_file_text(executor._submitit_command_str, "")


class _Executor(submitit.SlurmExecutor):
    @classmethod
    def affinity(cls) -> int:
        """Also without srun on PATH, for dry runs."""
        return 1


def _executor(folder: Path, name: str, cluster: Cluster, code: Path) -> _Executor:
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    cpus = cluster.runs_per_job * cluster.threads
    chosen = {
        "name": name,
        "timeout_min": cluster.minutes,
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": cpus,
        "srun_args": [f"--cpus-per-task={cpus}"],  # since Slurm 22.05 srun does not take it from sbatch
        "gpus_per_node": cluster.gpus or None,
        "mem_gb": cluster.memory_gb,
        **{option: getattr(cluster, option) for option in _PLACE},
        "array_parallelism": cluster.parallel_jobs,
        "signal_delay_s": cluster.signal_seconds,
        "stderr_to_stdout": True,
        "setup": [*cluster.setup, path],
        # requeue: some sites switch it off, and then neither preemption nor a lost node brings a job back.
        "additional_parameters": {"requeue": True, **cluster.extra},
    }
    # Without the working directory on its path, as the code is that of the copy; and the interpreter ignores the signal
    # until submitit handles it: before that it would end the job permanently.
    python = f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)} -P"""
    executor = _Executor(folder / "jobs", max_num_timeout=cluster.requeues, python=python)
    known = {option: value for option, value in chosen.items() if value is not None}
    executor.update_parameters(**executor._convert_parameters(known))
    return executor


@contextlib.contextmanager
def _without_conflicting_defaults(cluster: Cluster) -> Iterator[None]:
    """sbatch prefers SBATCH_* variables to the file's options: those that conflict are set aside."""
    always = ("ARRAY_INX", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "ERROR", "REQUEUE", "SIGNAL", "TIMELIMIT")
    chosen = [name.upper() for name in _PLACE if getattr(cluster, name)]
    aside = {name: os.environ.pop(name) for n in (*always, *chosen) if (name := f"SBATCH_{n}") in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)
