"""Sweeps on this machine, by submitit's local executor or, in this process, by its debug executor.

The local executor starts all jobs at once, kills a cancelled job after a second, and its jobs outlive the process that
submitted them. So ``run_local`` submits a few at a time, and each job watches a lock of the launcher: when it is
released or the launcher dies, the job stops its runs, which write a checkpoint first.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import submitit

from slurm.array_element import DIE_WITH_PARENT, ArrayElement
from slurm.clusters import blocked
from slurm.snapshot import ROOT, code_files, copy_code, recipe_source
from slurm.sweep import PlannedRun, override
from torchrl_reg.lab.run.lock import acquire

_INTERRUPTED = (130, 143)
_POLL_SECONDS = 0.1
_PROGRESS_SECONDS = 60.0
_NO_TIME_LIMIT = 10**6  # minutes; the local executor has no other word for it


def run_local(jobs: Sequence[ArrayElement], parallel: int, progress: Callable[[], str]) -> list[str]:
    """Runs the jobs, ``parallel`` at a time, and returns the failures.

    Prints ``progress()`` once a minute and at the end of every job. Ctrl-C stops the runs once they are saved, a second
    one at once.
    """
    place = Path(jobs[0].commands.folder, "jobs")  # not /tmp, where files of a long sweep would be cleaned up
    place.mkdir(exist_ok=True)
    for old in place.glob("local-*"):  # of a launcher that was killed
        shutil.rmtree(old, ignore_errors=True)
    with TemporaryDirectory(prefix="local-", dir=place, ignore_cleanup_errors=True) as scratch:
        lock = acquire(Path(scratch, "launcher"))
        executor = _local_executor(Path(scratch))
        waiting = deque(ArrayElement(replace(job.commands, launcher=str(Path(scratch, "launcher")))) for job in jobs)
        running: list[submitit.Job[str]] = []
        failures: list[str] = []
        shown = time.monotonic()
        try:
            while waiting or running:
                with blocked(signal.SIGINT):  # in a job too: Ctrl-C would end it before its runs are saved
                    while waiting and len(running) < parallel:
                        running.append(executor.submit(waiting.popleft().run))
                ended = [job for job in running if job.done()]
                for job in ended:
                    running.remove(job)
                    failures += _failure(job)
                if ended or time.monotonic() - shown > _PROGRESS_SECONDS:
                    print(progress(), flush=True)
                    shown = time.monotonic()
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            lock.release()
            print("stopping as soon as the runs are saved; Ctrl-C again stops them at once", flush=True)
            _wait_or_kill(running)
            print(progress(), flush=True)
            raise
    return failures


def run_debug(runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Runs the recipes on disk one after the other in this process, and returns the failures.

    An exception opens pdb.
    """
    failures = []
    with TemporaryDirectory(prefix="sweep-") as scratch:
        executor = submitit.AutoExecutor(scratch, cluster="debug")
        for run in runs:
            arguments = [*run.overrides, override("run.dir", str(folder / run.folder))]
            try:
                executor.submit(_run_recipe, recipe_source(run.recipe), arguments).result()
            except SystemExit as end:
                if end.code in _INTERRUPTED:
                    raise KeyboardInterrupt from None
                if end.code:
                    failures.append(f"{run.folder} (exit code {end.code})")
            except Exception as error:
                failures.append(f"{run.folder}: {error}")
    return failures


def _local_executor(scratch: Path) -> submitit.AutoExecutor:
    # A copy of the launcher's code: a git pull while the sweep runs must not change the jobs that start later.
    code = copy_code({name: path for name, path in code_files(()).items() if name.endswith(".py")}, scratch / "code")
    variables = [f"PYTHONPATH={os.pathsep.join(filter(None, (str(code), os.environ.get('PYTHONPATH'))))}"]
    if "CUDA_VISIBLE_DEVICES" in os.environ:  # the executor hides all GPUs
        variables.append(f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}")
    else:
        variables = ["-u", "CUDA_VISIBLE_DEVICES", *variables]
    python = shlex.join((*DIE_WITH_PARENT, "env", *variables, sys.executable, "-P"))
    executor = submitit.AutoExecutor(scratch / "jobs", cluster="local", local_python=python)
    executor.update_parameters(timeout_min=_NO_TIME_LIMIT, stderr_to_stdout=True)
    return executor


def _failure(job: submitit.Job[str]) -> list[str]:
    error = job.exception()
    failure = str(error) if error else job.result()
    # A job is named by a process id, which the system may assign again: the next job must not find these.
    for path in (job.paths.submitted_pickle, job.paths.result_pickle):
        path.unlink(missing_ok=True)
    return [failure] if failure else []


def _wait_or_kill(jobs: Sequence[submitit.Job[str]]) -> None:
    try:
        while not all(job.done() for job in jobs):
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        for job in jobs:
            if not job.done():
                os.kill(int(job.job_id), signal.SIGKILL)  # the controller's process; its job and runs die with it


def _run_recipe(script: Path, arguments: Sequence[str]) -> None:
    from hydra.core.global_hydra import GlobalHydra

    argv, path = sys.argv, list(sys.path)
    GlobalHydra.instance().clear()
    sys.argv, sys.path[:] = [str(script), *arguments], [str(script.parent), str(ROOT), *path]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path
