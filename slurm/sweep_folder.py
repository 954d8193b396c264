"""The folder of a sweep: its code, its launches, and whether a launch is in progress.

``sweep.yaml`` holds the sweep of the last launch and the code it belongs to; ``jobs.jsonl`` one row a launch: the id of
the array and the runs of its elements; ``code/`` copies of the code; ``jobs/`` the files of submitit.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from slurm.snapshot import Code
from slurm.sweep import flat, planned_runs
from torchrl_reg.lab.documents import read_yaml
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.lab.run.lock import LockedError, acquire, is_locked

_LOCK = ".launch.lock"
_OURS = ("sweep.yaml", "jobs.jsonl", "code", "jobs", _LOCK, f"{_LOCK}.soft")


@dataclass(frozen=True)
class Submitted:
    """One launch: its array (None on a workstation) and the runs of each element."""

    array: str | None
    elements: Sequence[Sequence[str]]

    def jobs(self) -> Iterator[tuple[str, str]]:
        """Each run and the id of its job: a single element is no array."""
        for index, names in enumerate(self.elements if self.array is not None else ()):
            job = f"{self.array}_{index}" if len(self.elements) > 1 else str(self.array)
            yield from ((name, job) for name in names)


class SweepFolder:
    """``path`` may not exist yet.

    Raises:
        UserError: a character that PYTHONPATH or sbatch would split the path at.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        bad = [character for character in ":%\n" if character in str(path)]
        if bad:
            raise UserError(f"root and name must not contain {bad[0]!r}, got {path}.")

    @property
    def is_launched(self) -> bool:
        return (self.path / "sweep.yaml").exists()

    def copy_folder(self, code: Code) -> Path:
        """The folder of the copy of ``code``."""
        return self.path / "code" / code.folder_name

    def read(self) -> dict[str, Any]:
        """The sweep of the last launch.

        Raises:
            UserError: there was none, or its sweep.yaml is damaged.
        """
        found = read_yaml(self.path / "sweep.yaml")
        if not isinstance(found, dict):
            what = "one whose sweep.yaml is damaged" if self.is_launched else "one without sweep.yaml"
            what = what if self.path.is_dir() else "no folder"
            raise UserError(f"{self.path} must be the folder of a launched sweep, got {what}.")
        return found

    def code_for(self, sweep: Mapping[str, Any], current: Code | None) -> Code:
        """The code of the sweep's runs: ``current``, or with None that of the first launch.

        Raises:
            UserError: the folder belongs to something else, to other code, or to a sweep with another base.
        """
        if not self.is_launched:
            foreign = sorted(p.name for p in self.path.iterdir() if p.name not in _OURS) if self.path.is_dir() else []
            if foreign or current is None:
                what = f"one without sweep.yaml{' that holds ' + foreign[0] if foreign else ''}"
                raise UserError(f"{self.path} must be a new folder or that of a sweep, got {what}.")
            return current
        before = self.read()
        self._refuse_other_base(before, sweep)
        first = self._launched_code(before.get("code"))
        if current is None:
            if not self.copy_folder(first).is_dir():
                raise UserError(f"kept_code=true needs {self.copy_folder(first)}, got none.")
            return first
        if first.digest != current.digest:
            raise UserError(
                f"{self.path} belongs to a sweep of other code (commit {first.commit[:7]} there, {current.commit[:7]} "
                "and the files on disk here); kept_code=true continues with the sweep's own copy, name=... starts anew."
            )
        return first

    def write(self, sweep: Mapping[str, Any], code: Code) -> None:
        """Writes ``sweep.yaml``."""
        text = yaml.safe_dump({"name": self.path.name, **sweep, "code": asdict(code)}, sort_keys=False)
        write_atomically(self.path / "sweep.yaml", text)

    def remove(self) -> None:
        """Removes the files of a refused launch, and nothing else."""
        for name in _OURS:
            shutil.rmtree(self.path / name, ignore_errors=True)  # if it is a folder
            with suppress(OSError):
                (self.path / name).unlink()
        with suppress(OSError):
            self.path.rmdir()

    # ------------------------------------------------------------ launches

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Two launches of one sweep at once would submit its runs twice."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(self.path / _LOCK)
        except LockedError as owner:
            raise UserError(f"{self.path} is being launched by {owner}.") from None
        try:
            yield
        finally:
            lock.release()

    def is_being_launched(self) -> bool:
        """True while a process of this machine launches it: with ``cluster=local``, until its runs are done."""
        return is_locked(self.path / _LOCK)

    def record(self, submitted: Submitted) -> None:
        """Appends a launch to ``jobs.jsonl``."""
        path = self.path / "jobs.jsonl"
        row = {"array": submitted.array, "submitted_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        line = json.dumps(row | {"elements": submitted.elements}) + "\n"
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write("\n" * torn + line)
            file.flush()
            os.fsync(file.fileno())

    def launches(self) -> list[Submitted]:
        """All launches in order, without a row that a crash cut short."""
        path = self.path / "jobs.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found.append(Submitted(row["array"], [[str(run) for run in element] for element in row["elements"]]))
        return found

    def run_folders(self) -> dict[str, tuple[str, ...]]:
        """Overrides of every run by folder: those of the last launch first, then those of earlier ones."""
        found = {run.folder: run.overrides for run in planned_runs(self.read())}
        earlier = (name for launch in self.launches() for element in launch.elements for name in element)
        return found | {name: () for name in earlier if name not in found}

    def _launched_code(self, entry: Any) -> Code:
        named = entry if isinstance(entry, dict) else {}
        kinds = {"commit": str, "uncommitted_changes": bool, "digest": str}
        if named.keys() != kinds.keys() or not all(isinstance(named[name], kind) for name, kind in kinds.items()):
            wanted = f"under code: {', '.join(kinds)}"
            raise UserError(f"{self.path}/sweep.yaml must hold {wanted}, got {str(entry)[:80]}; choose another name=.")
        return Code(**named)

    def _refuse_other_base(self, before: Mapping[str, Any], sweep: Mapping[str, Any]) -> None:
        there, here = ({"recipe": each.get("recipe"), **flat(each.get("base") or {})} for each in (before, sweep))
        pairs = {key: (there.get(key, "absent"), here.get(key, "absent")) for key in sorted(there.keys() | here.keys())}
        listed = "; ".join(f"{key}: {old} there, {new} here" for key, (old, new) in pairs.items() if old != new)
        if listed:
            raise UserError(f"{self.path} belongs to a sweep with another base ({listed}); choose another name=.")
