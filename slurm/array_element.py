"""One element of the array: takes its runs to the end through preemption, time-outs and node loss.

A run resumes bit-identically from its own checkpoints, so an element keeps no state: SLURM may signal it, kill it or
start it twice. Pickled is a handful of paths and command lines.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from slurm.code_digest import is_edited
from torchrl_reg.lab.run.folder import is_done, last_line
from torchrl_reg.lab.run.lock import LOCK, is_locked

# What a run begins as, both kept over exec. It does not outlive its element, whichever way that ends (Linux:
# prctl(PR_SET_PDEATHSIG, SIGKILL)), and ignores the signal that SLURM sends to all processes of a job, as the element
# stops it. A program of its own, because code between fork and exec (preexec_fn) may deadlock beside threads.
_TIE = """
import ctypes, os, signal, sys
for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_TIED = (sys.executable, "-S", "-c", _TIE)
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)
# Between SIGTERM to all processes of a job that is cancelled or requeued and SIGKILL (SLURM's KillWait).
_KILL_WAIT_SECONDS = 35.0
_FRUITLESS_LIVES = 3


@dataclass(frozen=True)
class Commands:
    """The runs of one element.

    Args:
        folder: the sweep's, absolute.
        code: the snapshot that runs, absolute; its commit is ``commit``.
        runs: ``(run folders below folder, one for each seed, and the command)`` of each process.
        threads: CPU threads a process may use.
        retries: how often a process that a signal killed (out of memory, say) is started again at once.
        minutes: the time limit of the job.
        lock_seconds: how long to wait for a process of an earlier life of this element to let its run go.
        grace_seconds: how long a run may take to finish its batch and write a checkpoint when it is stopped.
        digest: of the code when the sweep was launched; empty: the snapshot is not checked.
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


class ArrayElement:
    """Called by submitit: ``__call__`` on every start, ``checkpoint`` before a time-out or a preemption.

    Args:
        commands: what to run.
        fruitless_lives: how many whole jobs in a row have ended without a new checkpoint.
    """

    def __init__(self, commands: Commands, fruitless_lives: int = 0) -> None:
        self.commands = commands
        self.fruitless_lives = fruitless_lives
        self._begun = time.monotonic()
        self._saved_before: dict[Path, int] = {}
        self._stopping = False
        self._children: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.RLock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ArrayElement, (self.commands, self.fruitless_lives))

    def __call__(self) -> None:
        """Runs what is not done, side by side.

        Raises:
            RuntimeError: runs failed, and the others are done; or the snapshot was changed.
        """
        self._begun, self._saved_before = time.monotonic(), self._saved()
        runs = self.commands.runs
        if self.commands.digest and is_edited(Path(self.commands.code), self.commands.digest):
            problem = f"{self.commands.code} must hold the code that was launched, got changed files"
            self._note_failure([name for names, _ in runs for name in names], 1, problem)
            raise RuntimeError(problem)
        with ThreadPoolExecutor(max(1, len(runs))) as pool:
            failed = list(filter(None, pool.map(lambda run: self._carry_through(*run), runs)))
        if failed and not self._stopping:
            raise RuntimeError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission | None:
        """Stops the runs, which write a checkpoint first, and asks to be requeued.

        Not for ever: three jobs that ran out of time without a checkpoint are followed by no fourth.
        """
        # A second signal would enter here again in the middle of submitit's pickling.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        self.stop()
        self._remove_half_written_pickle()
        fruitless = self.fruitless_lives + 1 if self._was_long_and_saved_nothing() else 0
        if fruitless < _FRUITLESS_LIVES:
            return submitit.helpers.DelayedSubmission(ArrayElement(self.commands, fruitless))
        reason = f"no checkpoint in {fruitless} jobs of {self.commands.minutes} minutes: lower "
        reason += "run.checkpoint_every_frames or raise cluster.minutes."
        self._note_failure([name for names, _ in self.commands.runs for name in names], 1, reason)
        return None

    def ask_to_stop(self) -> None:
        """Sends SIGTERM to the runs, once: a second signal would stop them before they are saved."""
        with self._starting:
            asked, self._stopping = self._stopping, True
        for child in [] if asked else list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)  # not to its workers, which it needs to end its batch

    def stop(self, grace_seconds: float | None = None) -> None:
        """Ends the runs' processes, with SIGTERM first; reentrant."""
        self.ask_to_stop()
        grace = self.commands.grace_seconds if grace_seconds is None else grace_seconds
        _lasts(grace, lambda: any(child.poll() is None for child in list(self._children)))
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its own workers, too
        _lasts(3.0, lambda: any(child.poll() is None for child in list(self._children)))

    # ------------------------------------------------------------ one process

    def _carry_through(self, names: Sequence[str], command: Sequence[str]) -> str | None:
        """Takes one run, or several seeds together, to the end; returns what went wrong, if anything."""
        folders = [Path(self.commands.folder, name) for name in names]
        log = _beside(folders[0], ".log")
        try:
            folders[0].parent.mkdir(parents=True, exist_ok=True)
            for folder in folders:
                _beside(folder, ".failed").unlink(missing_ok=True)
            for life in range(self.commands.retries + 1):
                if all(map(is_done, folders)):
                    return None
                for name, folder in zip(names, folders, strict=True):
                    # A process killed by a hard requeue may take some time to go.
                    if _lasts(self.commands.lock_seconds, is_locked, folder / LOCK):
                        return f"{name}: another process writes it"
                code = self._start_and_wait(command, log, life)
                if self._stopping or (code == 0 and all(map(is_done, folders))):
                    return None
                if 0 <= code < 128:  # an error, or no done.json; others are signals
                    break
                if code in _TERMINATED and not _lasts(_KILL_WAIT_SECONDS, lambda: not self._stopping):
                    return None
            said = last_line(log) or "it left no word"
            return f"{self._note_failure(names, code, said)} (exit code {code}): {said}"
        except OSError as error:  # a full disk, say: this run fails, the others go on
            return f"{self._note_failure(names, -1, str(error))}: {error}"

    def _note_failure(self, names: Sequence[str], code: int, line: str) -> str:
        """Marks the runs that are not done, and returns what failed."""
        failed = [name for name in names if not is_done(Path(self.commands.folder, name))]
        failure = {"returncode": code, "last_line": line, "ended_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        for name in failed:
            with contextlib.suppress(OSError):  # the disk is full: what submitit keeps has to do
                _beside(Path(self.commands.folder, name), ".failed").write_text(json.dumps(failure) + "\n")
        return ", ".join(failed or names)

    def _start_and_wait(self, command: Sequence[str], log: Path, life: int) -> int:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in (self.commands.code, os.environ.get("PYTHONPATH")) if p),
            "OMP_NUM_THREADS": str(self.commands.threads),
            "TORCHRL_REG_COMMIT": self.commands.commit,
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as output:
            output.write(_headline(command, life).encode())
            output.flush()
            # Under the lock: stop() sees every process, and none is started after it.
            with self._starting:
                if self._stopping:
                    return -signal.SIGTERM
                child = subprocess.Popen(
                    [*_TIED, *command],
                    cwd=self.commands.code,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C on a workstation reaches it through stop()
                )
                self._children.add(child)
        code = child.wait()
        self._children.discard(child)
        return code

    def _was_long_and_saved_nothing(self) -> bool:
        """Whether this life used up half of the job and left no checkpoint."""
        return time.monotonic() - self._begun >= 30 * self.commands.minutes and self._saved() == self._saved_before

    def _saved(self) -> dict[Path, int]:
        """What the runs have saved; compared with itself, as the file system's clock may not be this machine's."""
        saved = {}
        for folder in (Path(self.commands.folder, name) for names, _ in self.commands.runs for name in names):
            for path in (folder / "done.json", *folder.glob("checkpoint*"), *folder.glob("checkpoints/*")):
                with contextlib.suppress(OSError):  # an old one, removed meanwhile
                    saved[path] = path.stat().st_mtime_ns
        return saved

    def _remove_half_written_pickle(self) -> None:
        """A kill in the middle of submitit's pickling leaves a file that makes every later checkpoint fail."""
        with contextlib.suppress(Exception):  # not in a job
            pickle = submitit.JobEnvironment().paths.submitted_pickle
            pickle.with_suffix(pickle.suffix + ".save_tmp").unlink(missing_ok=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _headline(command: Sequence[str], life: int) -> str:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID", ""))
    task, restart = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    where = f"job {job}{f'_{task}' if task else ''} (restart {restart}) on {os.uname().nodename}" if job else "here"
    again = f", life {life + 1}" if life else ""
    return f"=== {time.strftime('%Y-%m-%d %H:%M:%S')} {where}{again}: {' '.join(command)}\n"


def _lasts(seconds: float, condition: Callable[..., bool], *arguments: Any) -> bool:
    """False as soon as ``condition`` is, True if it holds for ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not condition(*arguments):
            return False
        time.sleep(0.1)
    return True
