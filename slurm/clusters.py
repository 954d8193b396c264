"""Where a sweep runs, and how its runs become one job array of submitit."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import submitit

from slurm.array_element import ArrayElement, Commands
from slurm.snapshot import Code, recipe_path
from slurm.sweep import PlannedRun, override
from torchrl_reg.lab.errors import UserError

_PLACE = ("partition", "account", "qos", "constraint")  # the same names in sbatch
# Words of sbatch's error -> the setting to change.
_REMEDIES = {
    "array specification": "raise cluster.runs_per_job, as the site allows fewer jobs",
    "time limit": "lower cluster.minutes (sinfo -o '%P %l' shows the limits)",
    "memory": "lower cluster.memory_gb",
    "node configuration": "lower cluster.gpus, cluster.memory_gb, cluster.threads or cluster.runs_per_job",
    "cpu count": "lower cluster.threads or cluster.runs_per_job",
    "gres": "lower cluster.gpus",
    "qos": "choose another cluster.qos, or lower cluster.minutes or cluster.runs_per_job",
    "account": "choose another cluster.account or cluster.partition",
    "feature": "choose another cluster.constraint",
    "partition": "choose another cluster.partition",
}


@dataclass
class Cluster:
    """Where a sweep runs; counts are per job, and a job is one element of the array."""

    kind: str = "slurm"  # slurm, local or debug
    partition: str | None = None  # null: SLURM's default
    account: str | None = None  # to charge
    qos: str | None = None  # quality of service: limits and priority
    constraint: str | None = None  # features of the node
    gpus: int = 0
    runs_per_job: int = 1  # processes side by side in a job: several small runs fill a GPU
    seeds_per_run: int = 1  # seeds of one setting trained together in a process (run.seeds), at a third of the cost
    threads: int = 1  # CPUs of each process
    memory_gb: float | None = None  # of the job; null: the partition's default
    minutes: int = 240  # of the job; an unfinished job is requeued
    signal_seconds: int = 90  # before the time limit the runs are stopped and write a checkpoint
    requeues: int = 1000  # after time limits
    retries: int = 2  # of a run killed by a signal, at once
    parallel_jobs: int = 256  # jobs at a time
    setup: list[str] = field(default_factory=list)  # shell lines before the runs: module load, conda activate
    extra: dict[str, Any] = field(default_factory=dict)  # further sbatch options, such as {nodelist: gpu7}

    def validate(self) -> None:
        if self.kind not in ("slurm", "local", "debug"):
            raise UserError(f"cluster.kind must be slurm, local or debug, got {self.kind}.")
        minimum = dict.fromkeys(("runs_per_job", "seeds_per_run", "threads", "minutes", "parallel_jobs"), 1)
        for name, limit in (minimum | dict.fromkeys(("gpus", "signal_seconds", "requeues", "retries"), 0)).items():
            if getattr(self, name) < limit:
                raise UserError(f"cluster.{name} must be at least {limit}, got {getattr(self, name)}.")
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise UserError(f"cluster.memory_gb must be > 0 or null, got {self.memory_gb:g}.")
        if self.kind == "slurm" and self.signal_seconds > 30 * self.minutes:
            raise UserError(
                f"cluster.signal_seconds must be at most half of cluster.minutes, got {self.signal_seconds} s "
                f"of {60 * self.minutes} s."
            )


def elements(runs: Sequence[PlannedRun], folder: Path, copy: Path, code: Code, cluster: Cluster) -> list[ArrayElement]:
    """The runs, ``runs_per_job`` to an element of the array."""
    grace = max(3.0, cluster.signal_seconds - 30.0) if cluster.kind == "slurm" else 60.0  # the rest is for the requeue
    processes = [(run.folders, command(run, folder, copy, threads=cluster.threads)) for run in runs]
    return [
        ArrayElement(
            Commands(
                str(folder),
                str(copy),
                code.label,
                processes[start : start + cluster.runs_per_job],
                threads=cluster.threads,
                retries=cluster.retries,
                minutes=cluster.minutes,
                grace_seconds=grace,
                digest=code.digest,
                launched_from=str(Path.cwd()),
            )
        )
        for start in range(0, len(runs), cluster.runs_per_job)
    ]


def command(run: PlannedRun, folder: Path, code: Path, *, threads: int = 1) -> tuple[str, ...]:
    """The command line of a run; a sweep that sets ``run.threads`` keeps its own."""
    last = [override("run.dir", str(folder / run.folder))]
    if threads > 1 and not any(each.startswith("run.threads=") for each in run.overrides):
        last.insert(0, f"run.threads={threads}")
    return (sys.executable, str(recipe_path(run.recipe, code)), *run.overrides, *last)


def submit(jobs: Sequence[ArrayElement], folder: Path, name: str, cluster: Cluster) -> str:
    """Submits one array and returns its id.

    Raises:
        UserError: sbatch refused it.
    """
    try:  # submitit prints the error of sbatch and raises it, too
        with _without_conflicting_defaults(cluster), contextlib.redirect_stderr(io.StringIO()):
            return _submit_array(jobs, folder / "jobs", name, cluster)[0].job_id.partition("_")[0]
    except submitit.core.utils.FailedJobError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "error" in line.lower()), lines[0])
        remedy = next((text for words, text in _REMEDIES.items() if words in reason.lower()), "")
        remedy = remedy or "lower what your site does not allow"
        sentence = f"{reason.rstrip('.')}; it asked for {_requested(len(jobs), cluster)}; {remedy}."
        raise UserError(f"SLURM refused the array: {sentence}") from None


def sbatch_text(jobs: Sequence[ArrayElement], folder: Path, name: str, cluster: Cluster) -> str:
    """The sbatch script of the array, also on a machine without SLURM.

    submitit writes the script only when it submits, so a stand-in for sbatch gets it.
    """
    with TemporaryDirectory() as scratch:
        for program in ("sbatch", "srun"):
            Path(scratch, program).symlink_to(str(shutil.which("echo")))
        path = f"{scratch}{os.pathsep}{os.environ.get('PATH', '')}"
        with submitit.helpers.environment_variables(PATH=path):
            # submitit reads the id of the job from the output of sbatch: here the name of this folder.
            array = _submit_array(jobs, Path(scratch, "job 1"), name, cluster)
        return array[0].paths.submission_file.read_text().replace(str(Path(scratch, "job 1")), str(folder / "jobs"))


@contextlib.contextmanager
def blocked(*signals: signal.Signals) -> Iterator[None]:
    """Signals wait until the end of the block; processes started in it never get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submit_array(jobs: Sequence[ArrayElement], folder: Path, name: str, cluster: Cluster) -> list[submitit.Job[None]]:
    # Without the working directory on its path, as the code is the copy; and the interpreter ignores the signal until
    # submitit handles it: before that it would end the job for good.
    python = f"""sh -c 'trap "" USR2; exec "$0" "$@"' {shlex.quote(sys.executable)} -P"""
    path = f"export PYTHONPATH={shlex.quote(jobs[0].commands.code)}${{PYTHONPATH:+:$PYTHONPATH}}"
    cpus = cluster.runs_per_job * cluster.threads
    executor = submitit.AutoExecutor(
        folder, cluster="slurm", slurm_max_num_timeout=cluster.requeues, slurm_python=python
    )
    executor.update_parameters(
        name=name,
        timeout_min=cluster.minutes,
        nodes=1,
        tasks_per_node=1,
        cpus_per_task=cpus,
        gpus_per_node=cluster.gpus or None,
        mem_gb=cluster.memory_gb,
        stderr_to_stdout=True,
        slurm_partition=cluster.partition,
        slurm_account=cluster.account,
        slurm_qos=cluster.qos,
        slurm_constraint=cluster.constraint,
        slurm_array_parallelism=cluster.parallel_jobs,
        slurm_signal_delay_s=cluster.signal_seconds,
        slurm_setup=[*cluster.setup, path],
        slurm_srun_args=[f"--cpus-per-task={cpus}"],  # since Slurm 22.05 srun does not take it from sbatch
        # requeue: some sites switch it off, and then neither preemption nor a lost node brings a job back.
        slurm_additional_parameters={"requeue": True, **cluster.extra},
    )
    with executor.batch():
        array = [executor.submit(job) for job in jobs]
    return array


def _requested(jobs: int, cluster: Cluster) -> str:
    """The settings of the array: ``4 jobs of cluster.gpus=2, ...``."""
    named = ("gpus", "runs_per_job", "threads", "memory_gb", "minutes", *_PLACE)
    chosen = {name: getattr(cluster, name) for name in named if getattr(cluster, name)} | cluster.extra
    shown = (f"cluster.{'extra.' * (name in cluster.extra)}{name}={value}" for name, value in chosen.items())
    return f"{jobs} {'job' if jobs == 1 else 'jobs'} of {', '.join(shown)}"


@contextlib.contextmanager
def _without_conflicting_defaults(cluster: Cluster) -> Iterator[None]:
    """Sets aside the SBATCH_* variables that would override options of the script."""
    always = ("ARRAY_INX", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT", "ERROR", "REQUEUE", "SIGNAL", "TIMELIMIT")
    chosen = [name.upper() for name in _PLACE if getattr(cluster, name)]
    aside = {name: os.environ.pop(name) for n in (*always, *chosen) if (name := f"SBATCH_{n}") in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)
