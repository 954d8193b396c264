"""Run folders read back: which recipe, environment, seed, settings and commits made which numbers.

Reads what :mod:`torchrl_reg.training` writes (``config.yaml``, ``command.txt``, ``provenance.json``,
``metrics.jsonl``, ``done.json``), also of runs still going on.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.errors import AnalysisError

#: Settings that say where a run is, what it shows and what it runs on, not what it computes.
_NOT_SETTINGS = frozenset(
    {"run.dir", "run.seed", "run.progress", "run.loggers", "run.threads", "run.log_every_frames", "run.device"}
)
#: Folders of a sweep that hold no runs of it: the code it was submitted with, checkpoints, SLURM's files.
_NOT_RUNS = frozenset({"code", "checkpoints", "jobs", "videos"})


#: Environment frames and values; NaN where a row has null.
Column = tuple[NDArray[np.int64], NDArray[np.float64]]
_EMPTY: Column = (np.zeros(0, np.int64), np.zeros(0))


@dataclass(frozen=True)
class RunRecord:
    """One run folder.

    Args:
        path: the folder; holds ``config.yaml`` and, once something happened, the other files.
        recipe: stem of the script in ``command.txt`` (``"m_dqn"``); ``"unknown"`` without one.
        env: name and game, ``"cartpole"`` or ``"atari/Pong"``.
        seed: ``run.seed``.
        config: every setting that makes the run what it is, flat (``{"algo.tau": 0.03, ...}``): all but the folder,
            the seed, the progress line, the loggers and how often they are written to, the threads and the device.
        starts: the starts of ``provenance.json``: commit, versions, host, device, SLURM ids.
        done: ``done.json``; None while the run is not finished.
        command: ``command.txt``.
        script: which file the recipe is, so that two of one stem stay apart: ``recipes/m_dqn.py`` in any checkout.
    """

    path: Path
    recipe: str
    env: str
    seed: int
    config: dict[str, Any]
    starts: tuple[dict[str, Any], ...]
    done: dict[str, Any] | None
    command: str
    script: str = ""

    @property
    def commits(self) -> tuple[str, ...]:
        """The distinct commits the run was started from, in order; ``"unknown"`` for one outside git."""
        return tuple(dict.fromkeys(start.get("commit") or "unknown" for start in self.starts))

    @property
    def short_commits(self) -> tuple[str, ...]:
        """Commits to show: seven digits, and ``+`` where there were uncommitted changes."""
        names = [(s.get("commit") or "unknown")[:7] + "+" * bool(s.get("uncommitted_changes")) for s in self.starts]
        return tuple(dict.fromkeys(names))

    def evaluations(self, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Environment frames ``[E]`` and values ``[E]`` of ``column`` in the evaluation rows; ``null`` is left out."""
        return self._column("eval", column)

    def evaluated_frames(self, column: str = "return_greedy_mean") -> NDArray[np.int64]:
        """Environment frames of the evaluation rows with ``column``, also where it is ``null``."""
        return self._columns("eval").get(column, _EMPTY)[0]

    def ends_without(self, column: str = "return_greedy_mean") -> bool:
        """Whether the last evaluation row with ``column`` has ``null`` in it: a return that is not finite."""
        values = self._columns("eval").get(column, _EMPTY)[1]
        return bool(len(values)) and bool(np.isnan(values[-1]))

    def training(self, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Environment frames ``[E]`` and values ``[E]`` of ``column`` in the training rows; ``null`` is left out."""
        return self._column("train", column)

    def names(self, event: str) -> list[str]:
        """Columns of the rows of ``event`` (``eval``, ``train``) that hold a number or ``null`` anywhere."""
        return [name for name in self._columns(event) if name not in ("event", "frames")]

    @cached_property
    def frames(self) -> int:
        """Environment frames at the last row of any kind."""
        last = [int(frames[-1]) for columns in self.all_columns.values() for frames, _ in columns.values()]
        return max(last, default=0)

    @cached_property
    def wall_seconds(self) -> float:
        """Of ``done.json``, else of the last row that has them."""
        total = (self.done or {}).get("wall_seconds")
        if _is_number(total):
            return float(total)
        found = [columns["wall_seconds"][1] for columns in self.all_columns.values() if "wall_seconds" in columns]
        return max((float(np.nanmax(each)) for each in found if not np.isnan(each).all()), default=0.0)

    @cached_property
    def all_columns(self) -> dict[str, dict[str, Column]]:
        """Every column of every kind of row as arrays, in one pass; what is asked for later is taken from here."""
        return _as_columns(metrics_rows(self.path))

    @cached_property
    def _eval_columns(self) -> dict[str, Column]:
        # Runs have a hundred training rows for one evaluation, so only lines that name the event are parsed.
        return _as_columns(metrics_rows(self.path, '"eval"')).get("eval", {})

    def _columns(self, event: str) -> dict[str, Column]:
        if event == "eval" and "all_columns" not in self.__dict__:
            return self._eval_columns
        return self.all_columns.get(event, {})

    def _column(self, event: str, column: str) -> Column:
        frames, values = self._columns(event).get(column, _EMPTY)
        there = ~np.isnan(values)
        return frames[there], values[there]


def metrics_rows(folder: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` in ``folder`` whose line has ``containing`` in it; none without the file.

    Left out are a last line still being written (one without its line break) and rows without a name of an event or
    a number of frames. A number that is not finite is None, as training writes it.

    Raises:
        AnalysisError: another line is no JSON object.
    """
    path = folder / "metrics.jsonl"
    lines = _text(path).split("\n")
    for number, line in enumerate(lines[:-1], 1):
        if containing in line:
            try:
                row = json.loads(line, parse_constant=lambda _: None)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise AnalysisError(f"{path} must hold one JSON object a line, got {line[:40]!r} in line {number}.")
            frames = row.get("frames")
            if isinstance(row.get("event"), str) and isinstance(frames, int) and not isinstance(frames, bool):
                yield row


def _as_columns(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, Column]]:
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    every: dict[str, list[int]] = {}
    for row in rows:
        columns = found.setdefault(row["event"], {})
        every.setdefault(row["event"], []).append(row["frames"])
        for name, value in row.items():
            if value is None or _is_number(value):
                frames, values = columns.setdefault(name, ([], []))
                frames.append(row["frames"])
                values.append(float(value) if value is not None and math.isfinite(value) else math.nan)
    arrays: dict[str, dict[str, Column]] = {}
    for event, columns in found.items():
        shared = np.array(every[event], np.int64)  # of the columns that no row lacks, which are most
        arrays[event] = {
            name: (shared if len(frames) == len(shared) else np.array(frames, np.int64), np.array(values))
            for name, (frames, values) in columns.items()
        }
    return arrays


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def find_runs(root: Path | str | Sequence[Path | str], *, skipped: list[str] | None = None) -> list[RunRecord]:
    """Every run folder at or below ``root`` (one or several folders), sorted by path.

    A run folder holds ``config.yaml``. Not looked into: hidden folders, and those named ``code``, ``checkpoints``,
    ``jobs`` or ``videos``.

    Args:
        root: where to look.
        skipped: takes a sentence on every folder that cannot be read, which is then left out as long as another can.

    Raises:
        AnalysisError: ``root`` is no folder, or a run folder cannot be read: any one, or with ``skipped`` every one.
    """
    roots = [root] if isinstance(root, str | Path) else root
    found: dict[Path, Path] = {}
    for each in map(Path, roots):
        if not each.is_dir():
            raise AnalysisError(f"results must be an existing folder, got {each}.")
        for folder in run_folders(each):
            found.setdefault(folder.resolve(), folder)
    if skipped is None:
        return [read_run(folder) for folder in sorted(found.values())]
    runs, problems = [], []
    for folder in sorted(found.values()):
        try:
            runs.append(read_run(folder))
        except AnalysisError as error:
            problems.append(str(error))
    if problems and not runs:
        raise AnalysisError(problems[0])
    skipped += problems
    return runs


def read_run(folder: Path) -> RunRecord:
    """The run in ``folder``.

    Raises:
        AnalysisError: it holds no ``config.yaml`` of a run, or a file in it cannot be read.
    """
    config = dict(_flat(_yaml(folder / "config.yaml")))
    starts = (_json(folder / "provenance.json") or {}).get("starts")
    if "env.name" not in config or "run.seed" not in config:
        raise AnalysisError(f"{folder}/config.yaml must be that of a run, with env.name and run.seed, got neither.")
    command = _text(folder / "command.txt").strip()
    script = _script(command)
    return RunRecord(
        path=folder,
        recipe=Path(script).stem or "unknown",
        env="/".join(str(part) for part in (config["env.name"], config.get("env.game")) if part),
        seed=config["run.seed"],
        config={key: value for key, value in config.items() if key not in _NOT_SETTINGS},
        starts=tuple(start for start in (starts if isinstance(starts, list) else ()) if isinstance(start, dict)),
        done=_json(folder / "done.json"),
        command=command,
        script=script,
    )


def run_folders(root: Path) -> Iterator[Path]:
    """The folders at or below ``root`` that hold a ``config.yaml``, as :func:`find_runs` looks for them."""
    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        if is_seen(folder, seen):
            below.clear()
        elif "config.yaml" in files:
            below.clear()
            yield Path(folder)
        else:
            below[:] = sorted(name for name in below if name not in _NOT_RUNS and not name.startswith("."))


def is_seen(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether ``folder`` is in ``seen``, links followed; it is from now on. Keeps a walk along links from circling."""
    try:
        status = os.stat(folder)
    except OSError:
        return True
    place = (status.st_dev, status.st_ino)
    if place in seen:
        return True
    seen.add(place)
    return False


def _script(command: str) -> str:
    """The recipe's file in ``command``, alike for every checkout and for a sweep's copy of it; empty without one."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    path = next((os.path.normpath(word) for word in words if word.endswith(".py")), "")
    ours = re.search(r"(?:^|/)(recipes/[^/]+|own/[0-9a-f]{8}/[^/]+)$", path)
    return ours[1] if ours else path


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict) and (node or not prefix):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise AnalysisError(
            "run folders need PyYAML to be read, got none: pip install 'torchrl_reg[report]'."
        ) from error
    # The C loader takes 2 ms a config, the Python one 15.
    try:
        return yaml.load(_text(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        raise AnalysisError(f"{path} must be YAML, got something else.") from None


def _json(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    try:
        found = json.loads(text) if text else None
    except ValueError:
        raise AnalysisError(f"{path} must be JSON, got {text[:40]!r}.") from None
    if found is not None and not isinstance(found, dict):
        raise AnalysisError(f"{path} must hold a JSON object, got {text[:40]!r}.")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path} could not be read: {error}.") from None
