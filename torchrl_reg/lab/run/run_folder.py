"""The folder of a run: settings, provenance and the files of a finished run."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePath
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_reg.compat import tree_map_only
from torchrl_reg.lab.documents import flat, read_yaml
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.run.divergence import FAILED
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.lab.run.folder import is_done, with_targets
from torchrl_reg.lab.run.lock import LOCK, LockedError, acquire
from torchrl_reg.lab.run.provenance import differences, provenance
from torchrl_reg.lab.run.settings import WITHOUT_EFFECT, RecipeConfig

#: Differing settings named in an error.
_NAMED = 6
#: The shell command that repeats this run, where ``sys.argv`` does not.
COMMAND: ContextVar[str | None] = ContextVar("command", default=None)


def command() -> str:
    """The shell command that starts this run again."""
    return COMMAND.get() or shlex.join([Path(sys.executable).name, *sys.argv])


class RunFolder:
    """A run folder ``path`` and the config of its run.

    Args:
        config: a recipe's config; ``config.run.dir`` is the folder.

    Raises:
        UserError: ``run.dir`` is not set, or the folder holds something else.
    """

    def __init__(self, config: RecipeConfig) -> None:
        if not config.run.dir:
            raise UserError("run.dir must be the folder of the run, got None.")
        self.path = Path(config.run.dir)
        self.config = config
        with _as_user_error(self.path):
            self._check_settings()

    @property
    def is_done(self) -> bool:
        """True if the run in this folder has finished."""
        return is_done(self.path)

    @property
    def has_begun(self) -> bool:
        """True if there is anything that a start with other settings would continue or overwrite."""
        recorded = any(path.stat().st_size for path in self.path.glob("metrics*.jsonl"))
        kept = (path for pattern in ("checkpoints/checkpoint-*", "parts/*.json") for path in self.path.glob(pattern))
        return self.is_done or recorded or any(kept)

    def open(self, device: torch.device) -> None:
        """Locks the folder; a new one is created, with its ``config.yaml``.

        Called after the recipe has built its objects, so that a config that cannot run leaves no folder behind. One
        that fails in its first batch leaves a folder that other settings may use.
        """
        with _as_user_error(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = acquire(self.path / LOCK)
            try:
                self._check_settings()  # another process may have begun meanwhile
            except UserError:
                self._lock.release()
                raise
            self._write_start(device)

    def _write_start(self, device: torch.device) -> None:
        # The first file, so that the folder of a run killed at any time has a config.
        if not self.has_begun:
            resolved = _as_dict_config(self.config)
            resolved.run.device = str(device)  # resolves "auto"
            write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(resolved))
        write_atomically(self.path / "command.txt", command() + "\n")
        (self.path / FAILED).unlink(missing_ok=True)  # from an earlier start
        starts = self._earlier_starts()
        #: The processes that began or continued this run before, the same for seeds that have always run together.
        self.processes = tuple((start.get("host"), start.get("process")) for start in starts)
        starts.append(provenance(device, type(self.config)))
        write_atomically(self.path / "provenance.json", json.dumps({"starts": starts}, indent=2) + "\n")
        resumes = len(starts) > 1 and any(self.path.glob("checkpoints/checkpoint-*"))
        if resumes and (changed := differences(starts[-2], starts[-1])):
            warning = f"warning: this run began elsewhere ({'; '.join(changed)}), so that its numbers may differ from"
            say(f"{warning} those of a run that was never interrupted.", to_stderr=True)

    def close(self, done: dict[str, object]) -> None:
        """Writes ``done.json``, the last file of a run, and releases the lock."""
        checkpoints = sorted(self.path.glob("checkpoints/checkpoint-*"))
        names = ["metrics.jsonl", "policy.safetensors", *(f"checkpoints/{path.name}" for path in checkpoints)]
        done = {**done, "files": [name for name in names if (self.path / name).exists()]}
        write_atomically(self.path / "done.json", json.dumps(done, indent=2) + "\n")
        (self.path / LOCK).unlink(missing_ok=True)  # before the release: later it may be another process's
        self._lock.release()

    def check_done(self) -> None:
        """Raises ``UserError`` if files of the finished run are missing."""
        try:
            files = json.loads((self.path / "done.json").read_text(encoding="utf-8")).get("files", [])
        except (ValueError, AttributeError):
            advice = "delete it and run the same command, which continues at the last checkpoint"
            raise UserError(f"{self.path / 'done.json'} is damaged: {advice}.") from None
        if gone := [name for name in files if not (self.path / name).exists()]:
            left = ", ".join(sorted(path.name for path in self.path.iterdir() if not path.name.startswith(".")))
            raise UserError(
                f"{self.path} holds a finished run without its {', '.join(gone)}; left are {left}: put back what is "
                "gone from a copy, or delete the folder to run it again."
            )

    def _earlier_starts(self) -> list[dict[str, Any]]:
        path = self.path / "provenance.json"
        try:
            starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
            return [start for start in starts if isinstance(start, dict)]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({type(error).__name__}): delete it and run the same command to continue."
            ) from None

    def _check_settings(self) -> None:
        saved = self.path / "config.yaml"
        if saved.exists():
            there = _saved_settings(saved)
            if self.has_begun or "run.seed" not in there:  # a file of another program's is not overwritten
                _refuse_other_config(self.path, there, _settings(_as_dict_config(self.config)))
        elif self.path.is_dir():
            foreign = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if foreign:
                raise UserError(
                    f"run.dir must be an empty or new folder, or that of the same run, got "
                    f"{self.path}, which has no config.yaml but holds {', '.join(foreign[:3])}."
                )
        elif self.path.exists():
            raise UserError(f"run.dir must be a folder, got the file {self.path}.")


@contextmanager
def _as_user_error(path: Path) -> Iterator[None]:
    """Turns errors about a locked, unreadable or read-only folder into ``UserError``."""
    try:
        yield
    except LockedError as owner:
        advice = "wait for it, end it, or choose another run.dir."
        raise UserError(f"{path} is being written by {owner}; {advice}") from None
    except OSError as error:
        raise UserError(f"run.dir={path} cannot be used: {error.strerror or error}.") from error


def _saved_settings(path: Path) -> dict[str, Any]:
    """The settings in the ``config.yaml`` of an earlier start."""
    try:
        saved = read_yaml(path)
        if not isinstance(saved, dict) or not saved:
            raise UserError(f"{path} must hold settings, got none.")
        return with_targets(_settings(OmegaConf.create(saved)))
    except UserError as error:
        problem = str(error).removesuffix(".")
    except OmegaConfBaseException as error:
        problem = f"{path} is damaged ({' '.join(str(error).split())[:80]})"
    raise UserError(f"{problem}: put it back from a copy, or choose another run.dir.")


def _as_dict_config(config: RecipeConfig | DictConfig) -> DictConfig:
    # OmegaConf.structured fails on a class that was pickled by value (a recipe's, in a launcher's worker): it resolves
    # the type hints, which cannot be resolved there.
    return config if isinstance(config, DictConfig) else OmegaConf.create(dataclasses.asdict(config))


def _settings(config: DictConfig) -> dict[str, Any]:
    """``{"algo.tau": 0.03, ...}`` without :data:`WITHOUT_EFFECT` settings."""
    tree = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    texts = tree_map_only(PurePath, str, tree)  # as read_yaml reads paths
    return {name: value for name, value in flat(texts).items() if name not in WITHOUT_EFFECT}


def _refuse_other_config(path: Path, there: dict[str, object], here: dict[str, object]) -> None:
    different = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    if different:
        shown = [
            *different[:_NAMED],
            *([f"and {len(different) - _NAMED} more"] if len(different) > _NAMED else []),
        ]
        advice = "choose another run.dir, or the same settings to resume it."
        raise UserError(f"run.dir={path} belongs to a run with other settings ({'; '.join(shown)}); {advice}")
