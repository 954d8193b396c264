"""Run folders read back: which recipe, environment, seed, settings and commits made which numbers.

Reads what :mod:`torchrl_reg.training` writes (``config.yaml``, ``command.txt``, ``provenance.json``,
``metrics.jsonl``, ``done.json``), also of runs still going on.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.analysis.errors import AnalysisError

#: Settings that say where a run is and what it shows, not what it computes.
_NOT_SETTINGS = frozenset({"run.dir", "run.seed", "run.progress", "run.loggers"})
#: Folders of a sweep that hold no runs of it: the code it was submitted with, checkpoints, SLURM's files.
_NOT_RUNS = frozenset({"code", "checkpoints", "jobs", "videos"})


@dataclass(frozen=True)
class RunRecord:
    """One run folder.

    Args:
        path: the folder; holds ``config.yaml`` and, once something happened, the other files.
        recipe: stem of the script in ``command.txt`` (``"m_dqn"``); ``"unknown"`` without one.
        env: name and game, ``"cartpole"`` or ``"atari/Pong"``.
        seed: ``run.seed``.
        config: every setting that makes the run what it is, flat (``{"algo.tau": 0.03, ...}``): all but the folder,
            the seed, the progress line and the loggers.
        starts: the starts of ``provenance.json``: commit, versions, host, device, SLURM ids.
        done: ``done.json``; None while the run is not finished.
        command: ``command.txt``.
    """

    path: Path
    recipe: str
    env: str
    seed: int
    config: dict[str, Any]
    starts: tuple[dict[str, Any], ...]
    done: dict[str, Any] | None
    command: str

    @property
    def commits(self) -> tuple[str, ...]:
        """The distinct commits the run was started from, in order; ``"unknown"`` for one outside git."""
        return tuple(dict.fromkeys(start.get("commit") or "unknown" for start in self.starts))

    @property
    def short_commits(self) -> tuple[str, ...]:
        """Commits to show: seven digits, and ``+`` where there were uncommitted changes."""
        names = [(s.get("commit") or "unknown")[:7] + "+" * bool(s.get("uncommitted_changes")) for s in self.starts]
        return tuple(dict.fromkeys(names))

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Every row of ``metrics.jsonl``; a last line still being written is left out."""
        return list(metrics_rows(self.path))

    def evaluations(self, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Environment frames ``[E]`` and values ``[E]`` of ``column`` in the evaluation rows; ``null`` is left out."""
        return self._column("eval", column)

    def training(self, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Environment frames ``[E]`` and values ``[E]`` of ``column`` in the training rows; ``null`` is left out."""
        return self._column("train", column)

    def _column(self, event: str, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        # Runs have a hundred training rows for one evaluation, so only lines that name the event are parsed.
        rows = self.__dict__.get("rows") or metrics_rows(self.path, f'"{event}"')
        found = [(row["frames"], row[column]) for row in rows if row["event"] == event and row.get(column) is not None]
        frames, values = zip(*found, strict=True) if found else ((), ())
        return np.array(frames, dtype=np.int64), np.array(values, dtype=np.float64)


def metrics_rows(folder: Path, containing: str = "") -> Iterator[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` in ``folder`` whose line has ``containing`` in it; none without the file.

    A last line still being written (one without its line break) is left out.

    Raises:
        AnalysisError: another line is no JSON object.
    """
    path = folder / "metrics.jsonl"
    lines = _text(path).split("\n")
    for number, line in enumerate(lines[:-1], 1):
        if containing in line:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise AnalysisError(f"{path} must hold one JSON object a line, got {line[:40]!r} in line {number}.")
            yield row


def find_runs(root: Path | str | Sequence[Path | str]) -> list[RunRecord]:
    """Every run folder at or below ``root`` (one or several folders), sorted by path.

    A run folder holds ``config.yaml``. Not looked into: hidden folders, and those named ``code``, ``checkpoints``,
    ``jobs`` or ``videos``.

    Raises:
        AnalysisError: ``root`` is no folder, or a file in a run folder cannot be read.
    """
    roots = [root] if isinstance(root, str | Path) else root
    found: dict[Path, Path] = {}
    for each in map(Path, roots):
        if not each.is_dir():
            raise AnalysisError(f"results must be an existing folder, got {each}.")
        for folder in run_folders(each):
            found.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in sorted(found.values())]


def read_run(folder: Path) -> RunRecord:
    """The run in ``folder``.

    Raises:
        AnalysisError: it holds no ``config.yaml`` of a run, or a file in it cannot be read.
    """
    config = dict(_flat(_yaml(folder / "config.yaml")))
    if "env.name" not in config or "run.seed" not in config:
        raise AnalysisError(f"{folder}/config.yaml must be that of a run, with env.name and run.seed, got neither.")
    command = _text(folder / "command.txt").strip()
    return RunRecord(
        path=folder,
        recipe=_recipe(command),
        env="/".join(str(part) for part in (config["env.name"], config.get("env.game")) if part),
        seed=config["run.seed"],
        config={key: value for key, value in config.items() if key not in _NOT_SETTINGS},
        starts=tuple((_json(folder / "provenance.json") or {}).get("starts", ())),
        done=_json(folder / "done.json"),
        command=command,
    )


def run_folders(root: Path) -> Iterator[Path]:
    """The folders at or below ``root`` that hold a ``config.yaml``, as :func:`find_runs` looks for them."""
    for folder, below, files in os.walk(root):
        if "config.yaml" in files:
            below.clear()
            yield Path(folder)
        else:
            below[:] = sorted(name for name in below if name not in _NOT_RUNS and not name.startswith("."))


def _recipe(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return next((Path(word).stem for word in words if word.endswith(".py")), "unknown")


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
        return json.loads(text) if text else None
    except ValueError:
        raise AnalysisError(f"{path} must be JSON, got {text[:40]!r}.") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path} could not be read: {error}.") from None
