"""The folder of a run: who owns it, with which settings, and where it was computed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from torchrl_reg.training.errors import ConfigError
from torchrl_reg.training.files import write_atomically
from torchrl_reg.training.finite import FAILED
from torchrl_reg.training.folder_lock import FolderLock

#: Settings that change what is shown, not what is computed; they may differ when a run resumes.
COSMETIC = frozenset({"run.dir", "run.loggers", "run.progress", "run.on_nan"})
#: The shell command that repeats this run, where the recipe knows better than ``sys.argv``.
COMMAND: ContextVar[str | None] = ContextVar("command", default=None)

_PACKAGES = (
    *("torchrl_reg", "torch", "torchrl", "tensordict", "numpy", "gymnasium"),
    *("hydra-core", "ale-py", "minatar", "mujoco"),
)
_SLURM_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    *("SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST", "SLURM_JOB_PARTITION"),
)


class RunFolder:
    """``path`` and the config that belongs in it.

    Args:
        config: a recipe's config dataclass; ``config.run.dir`` names the folder.

    Raises:
        ConfigError: ``run.dir`` is not set, or the folder belongs to something else.
    """

    def __init__(self, config: Any) -> None:
        if not config.run.dir:
            raise ConfigError("run.dir must be the folder of the run, got None.")
        self.path = Path(config.run.dir)
        self.config = config
        self._lock: FolderLock | None = None
        self._check_owner()

    @property
    def is_done(self) -> bool:
        """Whether the run in this folder came to its end."""
        return (self.path / "done.json").exists()

    def open(self, device: torch.device) -> None:
        """Makes the folder with its ``config.yaml``, or opens that of the same run, and locks it.

        Called once all of the recipe's objects could be built, so that a config that cannot run
        leaves no folder behind.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.dir={self.path} cannot be made: {error.strerror}.") from error
        self._lock = FolderLock(self.path)
        # First of all files: a folder with anything in it has a config, whenever it was killed.
        if not (self.path / "config.yaml").exists():
            write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(_plain(self.config)))
        write_atomically(self.path / "command.txt", command() + "\n")
        (self.path / FAILED).unlink(missing_ok=True)  # of the start before this one
        provenance = self.path / "provenance.json"
        starts = json.loads(provenance.read_text())["starts"] if provenance.exists() else []
        starts.append(_provenance(device))
        write_atomically(provenance, json.dumps({"starts": starts}, indent=2) + "\n")

    def close(self, done: dict[str, Any]) -> None:
        """Writes ``done.json``, the last file of a run, and gives the folder up."""
        write_atomically(self.path / "done.json", json.dumps(done, indent=2) + "\n")
        if self._lock is not None:
            self._lock.release()

    def _check_owner(self) -> None:
        saved = self.path / "config.yaml"
        if saved.exists():
            _refuse_other_config(self.path, _flat(OmegaConf.load(saved)), _flat(self.config))
        elif self.path.is_dir():
            foreign = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if foreign:
                raise ConfigError(
                    f"run.dir must be an empty or new folder, or that of the same run, got "
                    f"{self.path}, which has no config.yaml but holds {', '.join(foreign[:3])}."
                )
        elif self.path.exists():
            raise ConfigError(f"run.dir must be a folder, got the file {self.path}.")


def command() -> str:
    """The shell command that starts this run again."""
    return COMMAND.get() or shlex.join([Path(sys.executable).name, *sys.argv])


def _plain(config: Any) -> Any:
    # asdict, because the type hints of a class that was pickled by value (a recipe's, in a worker
    # of a launcher) cannot be resolved, and OmegaConf.structured would try.
    return config if OmegaConf.is_config(config) else OmegaConf.create(dataclasses.asdict(config))


def _flat(config: Any) -> dict[str, Any]:
    """``{"algo.tau": 0.03, ...}`` without the cosmetic settings."""
    flat: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and (node or not prefix):
            for key, value in node.items():
                walk(value, f"{prefix}.{key}" if prefix else str(key))
        elif prefix not in COSMETIC:
            flat[prefix] = node

    walk(OmegaConf.to_container(_plain(config), resolve=True, enum_to_str=True), "")
    return flat


def _refuse_other_config(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    different = [
        f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key, "absent") != here.get(key, "absent")
    ]
    if different:
        raise ConfigError(
            f"run.dir={path} belongs to a run with other settings ({'; '.join(different)}); choose "
            "another run.dir, or the same settings to resume it."
        )


def _provenance(device: torch.device) -> dict[str, Any]:
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **_code(),
        "versions": {"python": platform.python_version(), **_versions()},
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "slurm": {name: os.environ[name] for name in _SLURM_VARIABLES if name in os.environ},
    }


def _code() -> dict[str, Any]:
    # A sweep runs a copy of the code, which knows no git: its launcher says where the copy comes from.
    copied_from = os.environ.get("TORCHRL_REG_COMMIT")
    if copied_from:
        return {"commit": copied_from.removesuffix("+"), "uncommitted_changes": copied_from.endswith("+")}
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": _git("rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
