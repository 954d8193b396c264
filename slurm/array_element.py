"""One element of a job array: takes its runs to the end through preemption, time limits and lost nodes.

Each run is a process of its own, even alone in its job: submitit calls ``checkpoint()`` in the main thread, where a run
could not finish its batch; and a job outlives a run that hangs or is killed. A run resumes bit-identically from its own
checkpoints, so an element keeps no state: SLURM may signal it, kill it or start it twice. Its pickle holds only paths
and command lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from slurm.code_digest import is_edited
from torchrl_reg.lab.run.folder import is_done, last_line
from torchrl_reg.lab.run.lock import LOCK, is_locked

# Runs a command that is killed with its parent, however the parent ends (Linux: prctl(PR_SET_PDEATHSIG, SIGKILL)), and
# that ignores the signal SLURM sends to all processes of a job. Both survive exec. A program, because code between fork
# and exec (preexec_fn) can deadlock in a process with threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
DIE_WITH_PARENT = (sys.executable, "-S", "-c", _DIE_WITH_PARENT)
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
# From SIGTERM to SIGKILL when a job is cancelled or requeued (SLURM's KillWait).
_KILL_WAIT_SECONDS = 35.0
_MAX_JOBS_WITHOUT_CHECKPOINT = 3
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Commands:
    """The runs of one element.

    Args:
        folder: the sweep's, absolute.
        code: the copy of the code to run, absolute; its commit is ``commit``.
        runs: ``(run folders below folder, one for each seed, and the command)`` of each process.
        threads: CPU threads of a process.
        retries: how often a process killed by a signal (out of memory, say) is started again at once.
        minutes: the time limit of the job.
        lock_seconds: how long to wait for a process of an earlier job to release a run.
        grace_seconds: time for a stopped run to finish its batch and write a checkpoint.
        digest: of the code when the sweep was launched; if empty, the copy is not checked.
        launcher: a lock file; the runs are stopped when it is released. Empty under SLURM.
        launched_from: the working directory of the runs, which relative paths in settings start from; ``code`` if it is
            gone.
    """

    folder: str
    code: str
    commit: str
    runs: Sequence[tuple[Sequence[str], Sequence[str]]]
    threads: int = 1
    retries: int = 2
    minutes: float = 240
    lock_seconds: float = 60.0
    grace_seconds: float = 60.0
    digest: str = ""
    launcher: str = ""
    launched_from: str = ""


class ArrayElement:
    """The callable that submitit pickles: ``__call__`` runs at every start, ``checkpoint`` before it is stopped.

    Args:
        commands: the runs.
        jobs_without_checkpoint: number of consecutive jobs that ended without a new checkpoint.
    """

    def __init__(self, commands: Commands, jobs_without_checkpoint: int = 0) -> None:
        self.commands = commands
        self.jobs_without_checkpoint = jobs_without_checkpoint
        self._begun = time.monotonic()
        self._first_saved: dict[Path, int] = {}
        self._stopping = False
        self._children: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ArrayElement, (self.commands, self.jobs_without_checkpoint))

    def __call__(self) -> None:
        """Runs what is not done, side by side.

        Raises:
            RuntimeError: runs failed, and the others are done; or the copy of the code was changed.
        """
        if failure := self.run():
            raise RuntimeError(failure)

    def run(self) -> str:
        """Like a call, but returns the error message; empty without a failure."""
        self._begun, self._first_saved = time.monotonic(), self._saved()
        runs = self.commands.runs
        if self.commands.digest and is_edited(Path(self.commands.code), self.commands.digest):
            problem = f"{self.commands.code} must hold the code that was launched, got changed files"
            self._mark_failed(self._names(), 1, problem)
            return problem
        with ThreadPoolExecutor(max(1, len(runs))) as pool:
            futures = [pool.submit(self._run_until_done, *run) for run in runs]
            while wait(futures, _POLL_SECONDS).not_done:
                if self.commands.launcher and not is_locked(Path(self.commands.launcher)):
                    self.stop()
        failed = [failure for future in futures if (failure := future.result())]
        return f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}" if failed and not self._stopping else ""

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """Stops the runs, which write a checkpoint first, and requeues the job.

        Returns None, which ends the job, after three jobs that used up their time without a checkpoint.
        """
        # A second signal would call this again in the middle of submitit's pickling.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self.stop()
        self._remove_partial_pickle()
        count = self.jobs_without_checkpoint + 1 if self._was_long_without_checkpoint() else 0
        if count < _MAX_JOBS_WITHOUT_CHECKPOINT:
            return submitit.helpers.DelayedSubmission(ArrayElement(self.commands, count))
        reason = f"no checkpoint in {count} jobs of {self.commands.minutes} minutes: lower "
        reason += "run.checkpoint_every_frames or raise cluster.minutes."
        self._mark_failed(self._names(), 1, reason)
        return None

    def request_stop(self) -> None:
        """Sends SIGTERM to the runs, once: a second signal would stop them before they are saved."""
        with self._starting:
            requested, self._stopping = self._stopping, True
        for child in [] if requested else list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)  # not to its workers, which it needs to end its batch

    def stop(self, grace_seconds: float | None = None) -> None:
        """Ends the processes of the runs, with SIGTERM first; reentrant."""
        self.request_stop()
        grace = self.commands.grace_seconds if grace_seconds is None else grace_seconds
        _holds_for(grace, self._has_children)
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and its workers
        _holds_for(3.0, self._has_children)

    # ------------------------------------------------------------ one process

    def _run_until_done(self, names: Sequence[str], command: Sequence[str]) -> str | None:
        """Takes one run, or several seeds together, to the end; returns the failure, if any."""
        folders = [Path(self.commands.folder, name) for name in names]
        log = _beside(folders[0], ".log")
        try:
            folders[0].parent.mkdir(parents=True, exist_ok=True)
            for folder in folders:
                _beside(folder, ".failed").unlink(missing_ok=True)
            for attempt in range(self.commands.retries + 1):
                if all(map(is_done, folders)):
                    return None
                for name, folder in zip(names, folders, strict=True):
                    # After a hard requeue the killed process can take a while to disappear.
                    if _holds_for(self.commands.lock_seconds, is_locked, folder / LOCK):
                        return f"{name}: another process writes it"
                code = self._start_and_wait(command, log, attempt)
                if self._stopping or (code == 0 and all(map(is_done, folders))):
                    return None
                if 0 <= code < 128:  # an error, or no done.json; others are signals
                    break
                if code in _TERMINATED and not _holds_for(_KILL_WAIT_SECONDS, lambda: not self._stopping):
                    return None
            line = last_line(log) or "its log is empty"
            return f"{self._mark_failed(names, code, line)} (exit code {code}): {line}"
        except OSError as error:  # a full disk, say: this run fails, the others go on
            return f"{self._mark_failed(names, -1, str(error))}: {error}"

    def _mark_failed(self, names: Sequence[str], code: int, line: str) -> str:
        """Writes ``.failed`` beside the runs that are not done, and returns their names."""
        failed = [name for name in names if not is_done(Path(self.commands.folder, name))]
        failure = {"returncode": code, "last_line": line, "ended_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        for name in failed:
            with contextlib.suppress(OSError):  # a full disk: submitit's log still has the error
                _beside(Path(self.commands.folder, name), ".failed").write_text(json.dumps(failure) + "\n")
        return ", ".join(failed or names)

    def _start_and_wait(self, command: Sequence[str], log: Path, attempt: int) -> int:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in (self.commands.code, os.environ.get("PYTHONPATH")) if p),
            "OMP_NUM_THREADS": str(self.commands.threads),
            "TORCHRL_REG_COMMIT": self.commands.commit,
            "PYTHONUNBUFFERED": "1",
        }
        launched_from = self.commands.launched_from
        with log.open("ab") as output:
            output.write(_headline(command, attempt).encode())
            output.flush()
            # Under the lock, so that stop() sees every process and none is started after it.
            with self._starting:
                if self._stopping:
                    return -signal.SIGTERM
                child = subprocess.Popen(
                    [*DIE_WITH_PARENT, *command],
                    cwd=launched_from if os.path.isdir(launched_from) else self.commands.code,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a group that stop() can kill with its workers
                )
                self._children.add(child)
        code = child.wait()
        self._children.discard(child)
        return code

    def _names(self) -> list[str]:
        return [name for names, _ in self.commands.runs for name in names]

    def _has_children(self) -> bool:
        return any(child.poll() is None for child in list(self._children))

    def _was_long_without_checkpoint(self) -> bool:
        """True if this job used half of its time and wrote no checkpoint."""
        return time.monotonic() - self._begun >= 30 * self.commands.minutes and self._saved() == self._first_saved

    def _saved(self) -> dict[Path, int]:
        """Modification times of the checkpoints; only equality counts, as the file server's clock may be wrong."""
        saved = {}
        for folder in (Path(self.commands.folder, name) for name in self._names()):
            for path in (folder / "done.json", *folder.glob("checkpoint*"), *folder.glob("checkpoints/*")):
                with contextlib.suppress(OSError):  # an old one, removed meanwhile
                    saved[path] = path.stat().st_mtime_ns
        return saved

    def _remove_partial_pickle(self) -> None:
        """A job killed while submitit pickles leaves a temporary file, and submitit refuses to write another."""
        with contextlib.suppress(Exception):  # outside a job
            pickle = submitit.JobEnvironment().paths.submitted_pickle
            for partial in pickle.parent.glob(f"{pickle.name}.*"):
                partial.unlink(missing_ok=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _headline(command: Sequence[str], attempt: int) -> str:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    task, restart = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    where = f"job {job}{f'_{task}' if task else ''} (restart {restart}) on {os.uname().nodename}" if job else "here"
    again = f", attempt {attempt + 1}" if attempt else ""
    return f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {where}{again}: {' '.join(command)}\n"


def _holds_for(seconds: float, condition: Callable[..., bool], *arguments: Any) -> bool:
    """False as soon as ``condition`` is, True if it holds for ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not condition(*arguments):
            return False
        time.sleep(0.1)
    return True
