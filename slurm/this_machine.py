"""The runs of a sweep without SLURM: side by side on this machine, or one by one in this process."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from slurm.array_element import ArrayElement
from slurm.snapshot import ROOT, recipe_source
from slurm.sweep import PlannedRun, override

_INTERRUPTED = (130, 143)
_TELL_SECONDS = 60.0


def run_here(jobs: Sequence[ArrayElement], parallel: int, tell: Callable[[], str]) -> list[str]:
    """Runs the jobs on this machine, ``parallel`` at a time; returns what failed. Ctrl-C stops them
    once they are saved, a second one at once.

    Prints what ``tell`` says once a minute and at the end of every job.
    """
    failures = []
    with ThreadPoolExecutor(parallel) as pool:
        try:
            waiting = {pool.submit(job) for job in jobs}
            while waiting:
                ended, waiting = wait(waiting, _TELL_SECONDS, FIRST_COMPLETED)
                for job_end in ended:
                    try:
                        job_end.result()
                    except RuntimeError as error:
                        failures.append(str(error))
                print(tell(), flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            print("stopping as soon as the runs are saved; Ctrl-C again stops them at once", flush=True)
            for job in jobs:
                job.ask_to_stop()
            try:
                for job in jobs:
                    job.stop()
            except KeyboardInterrupt:
                for job in jobs:
                    job.stop(grace_seconds=0.0)
            print(tell(), flush=True)
            raise
    return failures


def run_in_process(runs: Sequence[PlannedRun], folder: Path) -> list[str]:
    """Runs one after the other in this process and from the files on disk, for a debugger; returns what failed."""
    from hydra.core.global_hydra import GlobalHydra

    failures = []
    paths = list(sys.path)
    for run in runs:
        script = recipe_source(run.recipe)
        sys.argv = [str(script), *run.overrides, override("run.dir", str(folder / run.folder))]
        sys.path[:] = [str(script.parent), str(ROOT), *paths]
        GlobalHydra.instance().clear()
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            if end.code in _INTERRUPTED:
                raise KeyboardInterrupt from None
            if end.code:
                failures.append(f"{run.folder} (exit code {end.code})")
        except Exception as error:
            traceback.print_exc()
            failures.append(f"{run.folder}: {error}")
    return failures
