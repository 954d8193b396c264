"""Launches sweeps like a user, from a folder that is not the checkout, and watches them from outside."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "slurm"


def has_cluster() -> bool:
    """True if jobs can be submitted and their ends be queried (sacct)."""
    if not shutil.which("sbatch"):
        return False
    for command in (["scontrol", "ping"], ["sacct", "-n"]):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except subprocess.TimeoutExpired:
            return False
        if answer.returncode or "DOWN" in answer.stdout:
            return False
    return True


def wait_until(condition: Callable[[], Any], seconds: float = 90.0, what: str = "") -> Any:
    """The first true value of ``condition``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not in {seconds} s: {what or condition}")


@dataclass
class Sweep:
    """A sweep in ``folder``; ``launch`` submits (or runs) what is missing."""

    root: Path
    name: str
    arguments: tuple[str, ...]
    checkout: Path = ROOT

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def launch(self, *more: str, ok: bool = True, seconds: float = 200) -> subprocess.CompletedProcess[str]:
        done = run_launch(
            *self.arguments, f"name={self.name}", f"root={self.root}", *more, seconds=seconds, checkout=self.checkout
        )
        assert not ok or done.returncode == 0, done.stderr + done.stdout
        return done

    @property
    def array(self) -> str:
        return json.loads((self.folder / "jobs.jsonl").read_text().splitlines()[-1])["array"]

    def runs(self, pattern: str = "*/*/*/seed=*") -> list[Path]:
        return sorted(path for path in self.folder.glob(pattern) if path.is_dir())

    def finished(self) -> list[Path]:
        return [path for path in self.runs() if (path / "done.json").exists()]

    def wait_for(self, number: int, seconds: float = 120.0) -> list[Path]:
        wait_until(lambda: len(self.finished()) >= number, seconds, f"{number} finished runs in {self.folder}")
        return self.finished()

    def frames(self, run: Path) -> list[int]:
        """The frames of its rows: 1, 2, 3, ... if nothing was lost or done twice."""
        return [json.loads(line)["frames"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    def starts(self, run: Path) -> list[int]:
        """The frame at which each life of a run of ``sleeper.py`` began."""
        path = run / "starts.txt"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []

    def states(self) -> dict[str, str]:
        lines = ask("squeue", "-r", "-h", "-n", self.name, "-o", "%F_%K %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for_empty_queue(self, seconds: float = 60.0) -> None:
        wait_until(lambda: not self.states(), seconds, f"queue of {self.name}")


@cache
def foreign_folder() -> Path:
    """A working directory with packages of our names that must not be imported."""
    folder = Path(tempfile.mkdtemp(prefix="foreign-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    for name in ("torchrl_reg", "slurm", "recipes"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('from the working directory')\n")
    return folder


def launch_command(*arguments: str, checkout: Path = ROOT) -> list[str]:
    conf = str(Path(__file__).parent / "conf")
    return [sys.executable, str(checkout / "slurm" / "launch.py"), "--config-dir", conf, *arguments]


def launch_environment(checkout: Path = ROOT) -> dict[str, str]:
    """That of a user who installed ``checkout``; sweeps of the tests name recipes below ``RECIPES_OF_TESTS``."""
    return {**os.environ, "PYTHONPATH": str(checkout), "RECIPES_OF_TESTS": str(ROOT / "tests")}


def run_launch(
    *arguments: str, seconds: float = 200, checkout: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        launch_command(*arguments, checkout=checkout),
        capture_output=True,
        text=True,
        cwd=foreign_folder(),
        env={**launch_environment(checkout), **environment},
        timeout=seconds,
    )


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
