"""Finds runs: the folders below a folder, and those saved as rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torchrl_reg.lab.analysis.rows import read_rows, record_of
from torchrl_reg.lab.analysis.runs import RunRecord, read_run
from torchrl_reg.lab.errors import UserError

#: Subfolders that hold no runs: a sweep's code, checkpoints, SLURM's files.
_NOT_RUNS = frozenset({"code", "checkpoints", "jobs", "videos"})


def find_runs(
    root: Path | str | Sequence[Path | str], *, skipped: list[str] | None = None, training: bool = False
) -> list[RunRecord]:
    """The run folders at or below ``root`` (one or several folders), sorted by path.

    A run folder holds ``config.yaml``. Files of rows (``torchrl-reg table --save ROWS.jsonl``) give the runs in them.
    Hidden folders and those named ``code``, ``checkpoints``, ``jobs`` or ``videos`` are not searched.

    Args:
        root: the folders or files.
        skipped: receives a sentence for each folder that cannot be read, instead of an error. Evaluations are then
            read at once, to find damaged rows.
        training: with ``skipped``, also reads training rows at once.

    Raises:
        UserError: ``root`` is not a folder, a run folder cannot be read, or, with ``skipped``, none can.
    """
    roots = [root] if isinstance(root, str | Path) else root
    found: dict[Path, Path] = {}
    saved: list[RunRecord] = []
    for each in map(Path, roots):
        if each.suffix == ".jsonl" and each.is_file():
            saved += [record_of(row, each) for row in read_rows(each) if "config" in row]
            continue
        if not each.is_dir():
            raise UserError(f"results must be an existing folder, got no folder {each}.")
        for folder in run_folders(each):
            found.setdefault(folder.resolve(), folder)
    runs = []
    for folder in sorted(found.values()):
        try:
            run = read_run(folder)
            if skipped is not None:
                _ = run.all_columns if training else run.evaluated_frames()
            runs.append(run)
        except UserError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
    if skipped and not runs:
        raise UserError(skipped[0])
    return runs + saved


def run_folders(root: Path) -> Iterator[Path]:
    """The folders at or below ``root`` with a ``config.yaml``, searched as by :func:`find_runs`."""
    for folder, below, files in folders(root):
        if "config.yaml" in files:
            below.clear()
            yield folder


def folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walks the folders that may hold runs, each once, following links; clear the list of subfolders to skip them."""
    seen: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if name not in _NOT_RUNS and not name.startswith("."))
        try:
            status = os.stat(folder)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
        else:
            seen.add((status.st_dev, status.st_ino))
            yield Path(folder), below, files
