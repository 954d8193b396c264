"""Prints the state of a sweep: runs done, running, waiting and failed, and the time left.

    python slurm/status.py munchausen_ablation
    python slurm/status.py munchausen_ablation --watch

Reads files and calls ``squeue`` once; also for sweeps of ``cluster=local``. ``--watch`` repeats until no run is running
or waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from slurm.slurm_queue import Queued, advice, ended_runs, queued_runs
from slurm.sweep_folder import SweepFolder
from torchrl_reg.lab.analysis.numbers import amount, duration
from torchrl_reg.lab.analysis.runs import Row, last_rows
from torchrl_reg.lab.analysis.sweeps import failure
from torchrl_reg.lab.cli.invocation import as_typed
from torchrl_reg.lab.documents import read_text
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import printable
from torchrl_reg.lab.run.folder import error_line, is_done, last_line
from torchrl_reg.lab.run.lock import LOCK, is_locked

_TAIL_BYTES = 8192
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
_UNFINISHED = ("running", "waiting", "unknown")  # without an answer of SLURM an unknown run may be running
_ORDER = ("done", "running", "waiting", "unknown", "failed", "cancelled", "missing")


@dataclass(frozen=True)
class RunStatus:
    """One run of a sweep, from its files and the queue.

    Args:
        state: done, running, waiting (in the queue), failed, cancelled, missing (``launch.py`` would submit it again),
            or unknown: submitted, and SLURM does not answer.
        frames, total: environment frames done and planned; 0 where unknown.
        fps: of the last training row.
        last_return: of the last evaluation, else of the last training row with the end of an episode.
        last_line: of the log of a failed run; the age of the last row where the state is unknown.
        reason: SLURM's, for a run that waits.
        own_error: True if an exception ended it, which would come again, and not a signal or its node.
    """

    folder: str
    state: str
    frames: int = 0
    total: int = 0
    fps: float = 0.0
    last_return: float | None = None
    last_line: str = ""
    reason: str = ""
    own_error: bool = False


def sweep_status(folder: SweepFolder) -> list[RunStatus]:
    """The state of every run that the sweep in ``folder`` holds or once launched.

    Raises:
        UserError: it is not the folder of a sweep.
    """
    queued: dict[str, Queued] | None = None
    try:
        queued = queued_runs(folder)
    except UserError as error:
        print(f"{error} Runs without a state on disk are shown as unknown.", file=sys.stderr)
    jobs = folder.path / "jobs"
    logs = {name: jobs / f"{job}_0_log.out" for launch in folder.launches() for name, job in launch.jobs()}
    here = folder.is_being_launched()
    endings = cache(lambda: ended_runs(folder))  # one query, and only if needed
    found = []
    for name, overrides in folder.run_folders().items():
        path, job = folder.path / name, (queued or {}).get(name)
        state, line, own_error = _state(path, job)
        if state == "gone" and name not in logs:
            state = "waiting" if here else "missing"
        elif state == "gone" and queued is None:
            state, line = "unknown", _last_row(path)
        elif state == "gone":
            state, line, own_error = _ending(path, endings().get(name, ""), logs[name])
        reason = job.reason if job is not None and state == "waiting" else ""
        rows = last_rows(path, _TAIL_BYTES)
        frames, total = max((row["frames"] for row in rows), default=0), _total_frames(path, overrides)
        fps = [0.0, *(row["fps"] for row in rows if row.get("fps") and state == "running")][-1]
        evaluations_last = sorted(rows, key=lambda row: row["event"] == "eval")
        last_return = [None, *(value for row in evaluations_last if (value := _return_of(row)) is not None)][-1]
        found.append(RunStatus(name, state, frames, total, fps, last_return, line, reason, own_error))
    return found


def headline(name: str, runs: Sequence[RunStatus]) -> str:
    """Counts, frames, speed and time left in one line: ``..., 1.2M of 5M frames, 800 frames/s, 1:19:10 left``."""
    counts = Counter(run.state for run in runs)
    parts = [f"{counts[state]} {state}" for state in _ORDER if counts[state]]
    text = f"{name}: {len(runs)} runs: {', '.join(parts)}"
    if mean := _mean_total(runs):
        text += f", {amount(sum(run.frames for run in runs))} of {amount(mean * len(runs))} frames"
        if fps := sum(run.fps for run in runs):
            ahead = (run for run in runs if run.state in ("running", "waiting"))
            left = sum(max(0, (run.total or mean) - run.frames) for run in ahead)
            text += f", {fps:.0f} frames/s, {timedelta(seconds=int(left / fps))} left"
    return text


def summary(name: str, runs: Sequence[RunStatus]) -> str:
    """Counts, one line a setting, and the failures with their last log lines."""
    counts = Counter(run.state for run in runs)
    groups: dict[str, list[RunStatus]] = {}
    for run in runs:
        groups.setdefault(run.folder.rpartition("/")[0], []).append(run)
    width = max(map(len, groups))
    lines = [
        headline(name, runs),
        "",
        _line("settings", ("done", "run", "wait", "fail", "frames", "last return"), width),
    ]
    lines += [_group_line(group, members, width) for group, members in groups.items()]
    sections = {"waiting": _reasons(runs)}
    for state in ("failed", "cancelled", "unknown"):
        sections[state] = [f"{run.folder}: {run.last_line}" for run in runs if run.state == state]
    for title, entries in sections.items():
        lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)] if entries else []
    own_errors = sum(run.own_error for run in runs)
    if counts["missing"] + counts["cancelled"] + counts["failed"] > own_errors:
        launch = as_typed("python slurm/launch.py")
        lines += ["", f"{launch} with the same sweep submits what is missing, cancelled or failed again."]
    if own_errors:
        again = f"{own_errors} ended with an exception and will fail again until its cause is removed;"
        lines += ["", f"{again} other code or another base needs another name=."]
    return "\n".join(lines)


def _reasons(runs: Sequence[RunStatus]) -> list[str]:
    """``4 for PartitionConfig: never starts: ...``, the most frequent first."""
    counts = Counter(run.reason for run in runs if run.reason not in ("", "None"))
    return [f"{n} for {why}{': ' * bool(advice(why))}{advice(why)}" for why, n in counts.most_common()]


def _state(path: Path, job: Queued | None) -> tuple[str, str, bool]:
    """State, error message, and ``own_error``; the state is ``gone`` if neither files nor queue have it."""
    if is_done(path):
        return "done", "", False
    if job is not None and job.state in _WAITING:
        return "waiting", "", False
    if (failed := failure(path)) is not None:  # its job may go on with other runs
        return "failed", failed["last_line"], failed["returncode"] in map(str, range(128))
    return "running" if job is not None or is_locked(path / LOCK) else "gone", "", False


def _last_row(path: Path) -> str:
    """The age of the last row of a submitted run."""
    try:
        age = time.time() - (path / "metrics.jsonl").stat().st_mtime
    except OSError:
        return "submitted, no row yet"
    return f"submitted, last row {duration(max(0.0, age))} ago"


def _ending(path: Path, ended: str, job_log: Path) -> tuple[str, str, bool]:
    """The result of :func:`_state` for a job that has left the queue: it failed or was cancelled."""
    line = last_line(job_log) or last_line(path.with_name(path.name + ".log"))
    if ended.startswith("REQUEUED"):  # and cancelled before it ran again
        ended = "CANCELLED after it was requeued"
    if ended.startswith("CANCELLED") or "CANCELLED AT" in line:
        return "cancelled", f"its job was {printable(ended).lower() or 'cancelled'}{': ' * bool(line)}{line}", False
    how, line = printable(ended), line or "its log is empty; it may have been cancelled while it waited"
    return "failed", f"its job ended{f' ({how})' if how else ''}: {line}", error_line(job_log) != ""


def _return_of(row: Row) -> float | None:
    if row["event"] == "eval":
        return next((value for name, value in row.items() if re.fullmatch(r"return_\w+_mean", name)), None)
    return row.get("return_mean")


def _total_frames(path: Path, overrides: Sequence[str]) -> int:
    given = [text.partition("=")[2] for text in overrides if text.startswith("algo.total_frames=")]
    with suppress(ValueError, OverflowError):
        # Not parsed as YAML: that would take a second for 500 runs.
        given = given or re.findall(r"^  total_frames: (\d+)", read_text(path / "config.yaml"), re.MULTILINE)
        return int(float(given[0])) if given else 0
    return 0


def _mean_total(runs: Sequence[RunStatus]) -> float:
    known = [run.total for run in runs if run.total]
    return sum(known) / max(1, len(known))


def _group_line(group: str, runs: Sequence[RunStatus], width: int) -> str:
    counts = Counter(run.state for run in runs)
    returns = [run.last_return for run in runs if run.last_return is not None]
    last = f"{sum(returns) / len(returns):.4g}" if returns else "-"
    share = min(1.0, sum(run.frames for run in runs) / max(1.0, _mean_total(runs) * len(runs)))
    numbers = [str(counts[state]) for state in ("running", "waiting", "failed")]
    return _line(group, (f"{counts['done']}/{len(runs)}", *numbers, f"{share:.0%}", last), width)


def _line(title: str, cells: Sequence[str], width: int) -> str:
    columns = zip(cells, (7, 4, 4, 4, 7, 11), strict=True)
    return f"{title:{width}}  " + " ".join(f"{cell:>{size}}" for cell, size in columns)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=as_typed(str(__doc__)), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the sweep, or its folder")
    parser.add_argument("--root", default="results", help="folder of the sweeps (default: %(default)s)")
    parser.add_argument("--watch", action="store_true", help="repeat until no run is running or waiting")
    every = "interval of --watch; each time SLURM is queried (default: %(default)g)"
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help=every)
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    arguments = parser.parse_args()
    if not 0 < arguments.every < float("inf"):
        parser.error(f"--every must be > 0 seconds, got {arguments.every:g}")
    path = Path(arguments.name) if "/" in arguments.name else Path(arguments.root) / arguments.name
    try:
        folder = SweepFolder(path.resolve())
        while True:
            runs = sweep_status(folder)
            if arguments.json:
                print("\n".join(json.dumps(vars(run)) for run in runs))
            else:
                print(summary(folder.path.name, runs), flush=True)
            if not arguments.watch or not any(run.state in _UNFINISHED for run in runs):
                return
            time.sleep(arguments.every)
            print()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
