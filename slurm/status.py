"""How a sweep is doing: what is done, runs, waits or failed, and when it will be over.

    python slurm/status.py munchausen_ablation
    python slurm/status.py munchausen_ablation --watch

Reads files and asks ``squeue`` once; works on a workstation's sweeps, too.
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
from pathlib import Path
from typing import Any

from array_element import is_locked, last_line
from slurm_queue import queued_runs
from sweep import SweepError
from sweep_folder import SweepFolder

_TAIL_BYTES = 8192
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
_ORDER = ("done", "running", "waiting", "failed", "missing")


@dataclass(frozen=True)
class RunStatus:
    """One run of a sweep as its files and the queue tell it.

    Args:
        state: done, running, waiting (in the queue), failed, or missing (``launch.py`` would submit it again).
        frames, total: environment frames done and planned; 0 where unknown.
        fps: of the last training row.
        last_return: of the last evaluation, else of the last training row that saw an episode end.
        last_line: of the log, for runs that failed.
    """

    folder: str
    state: str
    frames: int = 0
    total: int = 0
    fps: float = 0.0
    last_return: float | None = None
    last_line: str = ""


def sweep_status(folder: SweepFolder) -> list[RunStatus]:
    """The state of every run that the sweep in ``folder`` holds or once launched.

    Raises:
        SweepError: it is not the folder of a sweep.
    """
    runs = folder.run_folders()
    try:
        queued = queued_runs(folder)
    except SweepError as error:
        print(f"{error} Only files were read.", file=sys.stderr)
        queued = {}
    logs = {
        name: folder.path / "jobs" / f"{launch.array}_{index}_0_log.out"
        for launch in folder.launches()
        for index, names in enumerate(launch.elements)
        for name in names
        if launch.array is not None
    }
    here = folder.is_being_launched()
    found = []
    for name, overrides in runs.items():
        path = folder.path / name
        state, line = _state(path, queued.get(name), logs.get(name))
        state = "waiting" if state == "missing" and here else state
        found.append(_run_status(name, path, overrides, state, line))
    return found


def summary(name: str, runs: Sequence[RunStatus]) -> str:
    """All of it as text: counts, one line a setting, the failures with their last log lines."""
    counts = Counter(run.state for run in runs)
    parts = [f"{counts[state]} {state}" for state in _ORDER if counts[state]]
    lines = [f"{name}: {len(runs)} runs: {', '.join(parts)}{_speed(runs)}", ""]
    groups: dict[str, list[RunStatus]] = {}
    for run in runs:
        groups.setdefault(run.folder.rpartition("/")[0], []).append(run)
    width = max(len(group) for group in groups)
    lines.append(
        f"{'settings':{width}}  {'done':>7} {'run':>4} {'wait':>4} {'fail':>4} {'frames':>7} {'last return':>11}"
    )
    lines += [_group_line(group, members, width) for group, members in groups.items()]
    failed = [run for run in runs if run.state == "failed"]
    if failed:
        lines += ["", "failed:"] + [f"  {run.folder}: {run.last_line}" for run in failed]
    if counts["missing"] or failed:
        lines += ["", "launch.py with the same sweep submits what is missing or failed again."]
    return "\n".join(lines)


def _run_status(name: str, path: Path, overrides: Sequence[str], state: str, line: str) -> RunStatus:
    rows = _last_rows(path / "metrics.jsonl")
    returns = [value for row in rows if (value := _return_of(row)) is not None]
    fps = [row["fps"] for row in rows if row.get("fps")]
    return RunStatus(
        folder=name,
        state=state,
        frames=max((row.get("frames") or 0 for row in rows), default=0),
        total=_total_frames(path, overrides),
        fps=fps[-1] if fps and state == "running" else 0.0,
        last_return=returns[-1] if returns else None,
        last_line=line,
    )


def _state(path: Path, queue_state: str | None, job_log: Path | None) -> tuple[str, str]:
    """``job_log`` is that of the element it was last submitted with, if any."""
    if (path / "done.json").exists():
        return "done", ""
    if queue_state in _WAITING:
        return "waiting", ""
    log = path.with_name(path.name + ".log")
    if path.with_name(path.name + ".failed").exists():  # perhaps in an element whose other runs go on
        return "failed", _reason(path) or last_line(log)
    if queue_state is not None or is_locked(path / ".lock"):
        return "running", ""
    if job_log is not None:
        return "failed", f"its job ended: {last_line(job_log) or last_line(log)}"
    return "missing", ""


def _reason(path: Path) -> str:
    with suppress(OSError, ValueError):
        return str(json.loads(path.with_name(path.name + ".failed").read_text()).get("last_line", ""))
    return ""


def _last_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return []
    rows = []
    for line in lines[1 if start else 0 : -1]:  # the first may lack its beginning, the last its end
        with suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _return_of(row: dict[str, Any]) -> float | None:
    if row.get("event") == "eval":
        return next((value for name, value in row.items() if re.fullmatch(r"return_\w+_mean", name)), None)
    return row.get("return_mean")


def _total_frames(path: Path, overrides: Sequence[str]) -> int:
    for text in overrides:
        if text.startswith("algo.total_frames="):
            return int(float(text.partition("=")[2]))
    try:
        # Not parsed as YAML: that would take a second for 500 runs.
        found = re.search(r"^  total_frames: (\d+)", (path / "config.yaml").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _speed(runs: Sequence[RunStatus]) -> str:
    """``, 1.2M of 5M frames, 800 frames/s, 1:19:10 left``."""
    known = [run.total for run in runs if run.total]
    if not known:
        return ""
    mean = sum(known) / len(known)
    frames, total = sum(run.frames for run in runs), sum(run.total or mean for run in runs)
    fps = sum(run.fps for run in runs)
    text = f", {_short(frames)} of {_short(total)} frames"
    if not fps:
        return text
    left = sum(max(0, (run.total or mean) - run.frames) for run in runs if run.state in ("running", "waiting"))
    seconds = int(left / fps)
    return f"{text}, {fps:.0f} frames/s, {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _group_line(group: str, runs: Sequence[RunStatus], width: int) -> str:
    counts = Counter(run.state for run in runs)
    returns = [run.last_return for run in runs if run.last_return is not None]
    last = f"{sum(returns) / len(returns):.4g}" if returns else "-"
    known = [run.total for run in runs if run.total]
    total = sum(known) / max(1, len(known)) * len(runs)
    share = min(1.0, sum(run.frames for run in runs) / max(1.0, total))
    numbers = [str(counts[state]) for state in ("running", "waiting", "failed")]
    return _line(group, (f"{counts['done']}/{len(runs)}", *numbers, f"{share:.0%}", last), width)


def _line(title: str, cells: Sequence[str], width: int) -> str:
    columns = zip(cells, (7, 4, 4, 4, 7, 11), strict=True)
    return f"{title:{width}}  " + " ".join(f"{cell:>{size}}" for cell, size in columns)


def _short(frames: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if frames >= size:
            return f"{frames / size:.3g}{unit}"
    return f"{frames:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the sweep, or its folder")
    parser.add_argument("--root", default="results", help="folder of the sweeps (default: %(default)s)")
    parser.add_argument("--watch", action="store_true", help="refresh until all runs are done")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two refreshes")
    parser.add_argument("--json", action="store_true", help="one JSON object a run")
    arguments = parser.parse_args()
    path = Path(arguments.name) if "/" in arguments.name else Path(arguments.root) / arguments.name
    try:
        folder = SweepFolder(path.resolve())
        while True:
            runs = sweep_status(folder)
            if arguments.json:
                print("\n".join(json.dumps(vars(run)) for run in runs))
            else:
                clear = "\033[H\033[2J" if arguments.watch and sys.stdout.isatty() else ""
                print(f"{clear}{summary(folder.path.name, runs)}", flush=True)
            if not arguments.watch or not any(run.state in ("running", "waiting") for run in runs):
                return
            time.sleep(arguments.every)
    except SweepError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
