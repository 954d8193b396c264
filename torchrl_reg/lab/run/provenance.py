"""Provenance of a run (code, versions, machine), and differences between two starts of a run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
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
    """Time, code, versions and machine of a start of a run.

    ``commit`` and ``uncommitted_changes`` belong to this package; ``user_code`` holds those of the repository around
    ``recipe`` (the class of the config), if it is another one.
    """
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **_code(recipe),
        "versions": _versions(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "slurm": {name: os.environ[name] for name in _SLURM_VARIABLES if name in os.environ},
    }


def processor() -> str:
    """The processor's model, such as ``"AMD EPYC 9R45"``, or else its architecture."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Differences of two starts that may change the numbers, such as ``"torch 2.11.0 before, 2.14.0 now"``."""
    found, new = [], _compared_facts(now)
    for name, old in _compared_facts(before).items():
        if old is not None and old != new[name]:
            found.append(f"{name} {old} before, {new[name]} now")
    return found


def _compared_facts(start: dict[str, Any]) -> dict[str, str | None]:
    versions, users = (each if isinstance(each := start.get(name), dict) else {} for name in ("versions", "user_code"))
    return {
        "torch": versions.get("torch"),
        "torchrl": versions.get("torchrl"),
        "commit": start.get("commit") and str(start["commit"])[:10],
        "the user's commit": users.get("commit") and str(users["commit"])[:10],
        "device": start.get("device"),
        "processor": start.get("processor"),
        "threads": start.get("threads"),
    }


def _code(recipe: type) -> dict[str, Any]:
    """The commits of this package and of the repository around ``recipe``, if it is another one."""
    here, file = Path(__file__), getattr(sys.modules.get(recipe.__module__), "__file__", None)
    # Installed inside a user's repository (.venv), this file is not tracked there.
    is_tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None
    ours = _repository(here.parent) if is_tracked else None
    theirs = _repository(Path(file).resolve().parent) if file else None  # no file: pickled into a launcher's worker
    # A sweep runs a copy of the code without .git; its launcher passes the commit.
    given = os.environ.get("TORCHRL_REG_COMMIT", "")
    commit, changes = (given.removesuffix("+"), given.endswith("+")) if given else (_installed_commit(), False)
    if ours is not None and not given:
        commit, changes = ours["commit"], ours["uncommitted_changes"]
    users = None if ours and theirs and ours["repository"] == theirs["repository"] else theirs
    return {"commit": commit, "uncommitted_changes": changes, "user_code": users}


def _repository(folder: Path) -> dict[str, Any] | None:
    top = _git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"repository": top, "commit": _git(folder, "rev-parse", "HEAD"), "uncommitted_changes": bool(changes)}


def _installed_commit() -> str | None:
    """The commit recorded by ``pip install git+https://...`` (PEP 610)."""
    try:
        origin = importlib.metadata.distribution("torchrl_reg").read_text("direct_url.json")
        return json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git in ``folder``; None if it is empty or git fails."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
