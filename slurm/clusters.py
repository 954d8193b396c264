"""Where a sweep runs: one submitit array on SLURM, side by side on this machine, or one by one in this process."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from array_element import ArrayElement, Commands
from slurm_queue import note_jobs
from snapshot import ROOT, recipe_path, recipe_source
from sweep import PlannedRun, SweepError, override


@dataclass
class Cluster:
    """Where and with what; counts are per job, and a job is an element of the array."""

    kind: str = "slurm"  # slurm, local or debug
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None  # features a node must have
    gpus: int = 0
    runs_per_job: int = 1  # side by side in one job, each a process: several small runs fill a GPU
    threads: int = 1  # CPUs of each run
    memory_gb: float | None = None  # of the job; null: the partition's default
    minutes: int = 240  # of the job; what is not done by then is queued again
    signal_seconds: int = 90  # how long before the end the runs are stopped
    requeues: int = 1000  # after time-outs
    retries: int = 2  # of a run that a signal killed, at once
    parallel_jobs: int = 256  # elements at a time (local: jobs at a time)
    setup: list[str] = field(default_factory=list)  # shell lines before the runs: module load, conda activate
    extra: dict[str, Any] = field(default_factory=dict)  # further sbatch options, such as {nodelist: gpu7}

    def validate(self) -> None:
        if self.kind not in ("slurm", "local", "debug"):
            raise SweepError(f"cluster.kind must be slurm, local or debug, got {self.kind}.")
        for name in ("runs_per_job", "threads", "minutes", "parallel_jobs"):
            if getattr(self, name) < 1:
                raise SweepError(f"cluster.{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("gpus", "signal_seconds", "requeues", "retries"):
            if getattr(self, name) < 0:
                raise SweepError(f"cluster.{name} must be at least 0, got {getattr(self, name)}.")


def elements(
    runs: Sequence[PlannedRun], folder: Path, code: Path, commit: str, cluster: Cluster, python: str = sys.executable
) -> list[ArrayElement]:
    """``runs_per_job`` runs to an element of the array."""
    size = cluster.runs_per_job
    return [
        ArrayElement(
            Commands(
                folder=str(folder),
                code=str(code),
                commit=commit,
                runs=[(run.folder, command(run, folder, code, python)) for run in runs[start : start + size]],
                threads=cluster.threads,
                retries=cluster.retries,
            )
        )
        for start in range(0, len(runs), size)
    ]


def command(run: PlannedRun, folder: Path, code: Path, python: str = sys.executable) -> tuple[str, ...]:
    """The command line of a run."""
    return (python, str(recipe_path(run.recipe, code)), *run.overrides, override("run.dir", str(folder / run.folder)))


# ------------------------------------------------------------ SLURM


def submit(jobs: Sequence[ArrayElement], folder: Path, name: str, cluster: Cluster) -> str:
    """Submits one array and returns its id.

    Raises:
        SweepError: sbatch refused it.
    """
    import submitit

    executor = _executor(folder, name, cluster, jobs[0].commands.code)
    try:
        # submitit prints what sbatch says and raises it, too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(job) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        reason = [line for line in str(error).splitlines() if "error" in line.lower()] or [str(error).strip()]
        raise SweepError(f"SLURM refused the array: {reason[0].strip()}") from None
    array = submitted[0].job_id.partition("_")[0]
    note_jobs(folder, array, [[run for run, _ in job.commands.runs] for job in jobs])
    return array


def sbatch_text(number: int, folder: Path, name: str, cluster: Cluster, code: Path) -> str:
    """What ``sbatch`` would be given for an array of ``number`` elements."""
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

    jobs = folder / "jobs"
    command = f"{sys.executable} -u -m submitit.core._submit {jobs}"
    # Not through an executor: that wants srun on PATH, and a dry run shall do without.
    names: Any = SlurmExecutor._equivalence_dict()
    translated: dict[str, Any] = {names.get(k, k): v for k, v in _parameters(name, cluster, code).items()}
    if "mem" in translated:
        translated["mem"] = f"{translated['mem']:g}GB"
    return _make_sbatch_string(command=command, folder=jobs, map_count=number if number > 1 else None, **translated)


def _executor(folder: Path, name: str, cluster: Cluster, code: str) -> Any:
    import submitit

    executor = submitit.SlurmExecutor(folder=folder / "jobs", max_num_timeout=cluster.requeues)
    parameters = _parameters(name, cluster, Path(code))
    executor.update_parameters(**executor._convert_parameters(parameters))
    return executor


def _parameters(name: str, cluster: Cluster, code: Path) -> dict[str, Any]:
    path = f"export PYTHONPATH={code}:{code}/slurm${{PYTHONPATH:+:$PYTHONPATH}}"
    chosen = {
        "name": name,
        "timeout_min": cluster.minutes,
        "nodes": 1,
        "tasks_per_node": 1,
        "cpus_per_task": cluster.runs_per_job * cluster.threads,
        "gpus_per_node": cluster.gpus or None,
        "mem_gb": cluster.memory_gb,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "array_parallelism": cluster.parallel_jobs,
        "signal_delay_s": cluster.signal_seconds,
        "stderr_to_stdout": True,
        "setup": [*cluster.setup, path],
        # requeue: some sites switch it off, and then neither preemption nor a lost node brings a job back.
        "additional_parameters": {"requeue": True, **cluster.extra},
    }
    return {key: value for key, value in chosen.items() if value is not None}


# ------------------------------------------------------------ this machine


def run_here(jobs: Sequence[ArrayElement], parallel: int) -> list[str]:
    """Runs the jobs on this machine, ``parallel`` at a time; returns what failed. Ctrl-C stops them."""

    def one(job: ArrayElement) -> str | None:
        try:
            job()
            return None
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            return [failure for failure in pool.map(one, jobs) if failure]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for job in jobs:
                job.stop()
            raise


def run_in_process(runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Runs one after the other in this process and from the files on disk, for a debugger; returns what failed."""
    from hydra.core.global_hydra import GlobalHydra

    failures = []
    sys.path.insert(0, str(ROOT))
    before = sys.argv
    for run in runs:
        script = str(recipe_source(run.recipe))
        sys.argv = [script, *run.overrides, override("run.dir", str(folder / run.folder))]
        GlobalHydra.instance().clear()
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            if end.code:
                failures.append(f"{run.folder} (exit code {end.code})")
        finally:
            sys.argv = before
    return failures
