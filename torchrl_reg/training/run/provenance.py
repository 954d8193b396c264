"""Where a run was computed: code, versions, machine; and what differs between two starts of one run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *("torchrl_reg", "torch", "torchrl", "tensordict", "numpy", "gymnasium"),
    *("hydra-core", "ale-py", "minatar", "mujoco"),
)
_SLURM_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
    *("SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST", "SLURM_JOB_PARTITION"),
)


def provenance(device: torch.device, recipe: type) -> dict[str, Any]:
    """One start of a run: when, by which code, on what.

    ``commit`` and ``uncommitted_changes`` are this package's, wherever it lies; ``user_code`` are those of the
    repository around ``recipe`` (the class of the config), where that is another one.
    """
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **_package_code(),
        "user_code": _user_code(recipe),
        "versions": {"python": platform.python_version(), **_versions()},
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "slurm": {name: os.environ[name] for name in _SLURM_VARIABLES if name in os.environ},
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two starts may change the numbers: ``"torch 2.11.0 before, 2.14.0 now"`` and so on."""
    found = []
    for name, path in (
        ("torch", ("versions", "torch")),
        ("torchrl", ("versions", "torchrl")),
        ("commit", ("commit",)),
        ("the user's commit", ("user_code", "commit")),
        ("device", ("device",)),
        ("threads", ("threads",)),
    ):
        old, new = _at(before, path), _at(now, path)
        if old != new and old is not None:
            found.append(f"{name} {_short(old)} before, {_short(new)} now")
    return found


def _at(start: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        start = start.get(name) if isinstance(start, dict) else None
    return start


def _short(value: Any) -> str:
    text = str(value)
    return text[:10] if len(text) == 40 else text  # a commit


def _package_code() -> dict[str, Any]:
    # A sweep runs a copy of the code, which knows no git: its launcher says where the copy comes from.
    copied_from = os.environ.get("TORCHRL_REG_COMMIT")
    if copied_from:
        return {"commit": copied_from.removesuffix("+"), "uncommitted_changes": copied_from.endswith("+")}
    here = Path(__file__).parent
    # Installed inside a user's repository, this file lies in it but does not belong to it.
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": _installed_commit(), "uncommitted_changes": False}
    return _state(here)


def _user_code(recipe: type) -> dict[str, Any] | None:
    file = getattr(sys.modules.get(recipe.__module__), "__file__", None)
    if file is None:  # pickled by value into a worker of a launcher
        return None
    folder = Path(file).resolve().parent
    top = _git(folder, "rev-parse", "--show-toplevel")
    ours = _git(Path(__file__).parent, "ls-files", "--error-unmatch", Path(__file__).name) is not None
    if top is None or (ours and top == _git(Path(__file__).parent, "rev-parse", "--show-toplevel")):
        return None
    return {"repository": top, **_state(folder)}


def _state(folder: Path) -> dict[str, Any]:
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(folder, "rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def _installed_commit() -> str | None:
    """Of ``pip install git+https://...``, which leaves a note (PEP 610)."""
    try:
        note = importlib.metadata.distribution("torchrl_reg").read_text("direct_url.json")
        return json.loads(note or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says in ``folder``; None where it says nothing, or fails."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
