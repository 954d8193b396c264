"""The folder and the rows that every run has, and runs without a collector."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.files import write_atomically
from torchrl_reg.lab.run.logger import RunLogger
from torchrl_reg.lab.run.run_folder import RunFolder
from torchrl_reg.lab.run.settings import RecipeConfig
from torchrl_reg.lab.run.streams import set_up_cpu


class BaseRun:
    """The folder and the record that a :class:`Run` (a loop over batches) and a :class:`Study` share.

    Args:
        config: a dataclass with a field ``run`` of type :class:`RunSettings`.
        device: written to ``config.yaml`` and the provenance.

    Attributes:
        path: the run folder.
        settings: ``config.run``.
        device: as given.
        frames: environment frames (of a study: the recipe's unit) counted so far.

    Raises:
        UserError: the folder belongs to another run or holds a finished one, or a logger is not installed.
    """

    def __init__(self, config: RecipeConfig, device: torch.device) -> None:
        self.settings, self.device, self.frames = config.run, device, 0
        self._folder = RunFolder(config)
        self.path: Path = self._folder.path
        if self._folder.is_done:
            raise UserError(f"run.dir={self.path} holds a finished run.")
        self._logger = RunLogger(self.path, self.settings)
        set_up_cpu(self.settings.threads)

    def log(self, event: str, **columns: object) -> None:
        """Writes a row: ``{"event": event, "frames": ..., **columns}``."""
        self._logger.write({"event": event, "frames": self.frames, **columns})

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._logger.say(text)

    def _close(self, facts: dict[str, object]) -> Path:
        """Writes ``done.json``: frames, times, the last evaluation, and ``facts``."""
        times = {"wall_seconds": self._logger.wall_seconds(), "cpu_seconds": self._logger.cpu_seconds()}
        facts = {"evaluation": self._logger.last_evaluation, **facts}
        self._folder.close({"frames": self.frames, **times, **facts})
        self.say(f"finished: {self.path}")
        return self.path


class Study(BaseRun):
    """The parts and rows of a recipe without a collector: ``with Study(cfg, total) as study: ...``.

    A part is a JSON object that depends on the config alone. The same command resumes a killed run: it reads finished
    parts from ``parts/``, computes the others, and writes the same ``metrics.jsonl`` as an uninterrupted run.

    Args:
        config: a dataclass with a field ``run`` of type :class:`RunSettings`.
        total: frames of the whole run, in the recipe's unit, for the progress line.

    Raises:
        UserError: the folder belongs to another run, or holds a finished one.
    """

    def __init__(self, config: RecipeConfig, total: int) -> None:
        super().__init__(config, torch.device("cpu"))
        self._total = total

    def __enter__(self) -> Study:
        self._folder.open(self.device)
        (self.path / "parts").mkdir(exist_ok=True)
        self._logger.restart()
        self._logger.start(self._total, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.stop()

    def part(self, name: str, compute: Callable[[], Mapping[str, Any]], *, frames: int = 0) -> dict[str, Any]:
        """The result of ``compute()``, cached in the folder under ``name``; advances the progress by ``frames``."""
        found = self.load(name)
        if found is None:
            found = dict(compute())
            self.store(name, found)
        self.advance(frames)
        return found

    def load(self, name: str) -> dict[str, Any] | None:
        """The content stored under ``name``, or None."""
        path = self._part(name)
        return json.loads(path.read_text()) if path.exists() else None

    def store(self, name: str, content: Mapping[str, Any]) -> None:
        """Stores ``content`` under ``name``, replacing what was there."""
        write_atomically(self._part(name), json.dumps(content))

    def advance(self, frames: int) -> None:
        """Adds ``frames`` to the count."""
        self.frames += frames
        self._logger.advance(frames, [])

    def evaluation(self, columns: Mapping[str, Any]) -> None:
        """Writes an evaluation row, which reports and tables read; ``done.json`` holds the last one."""
        self._logger.evaluation(self.frames, columns)

    def finish(self, **facts: object) -> Path:
        """Writes ``done.json`` with ``facts`` and returns the run folder."""
        return self._close(facts)

    def _part(self, name: str) -> Path:
        return self.path / "parts" / f"{name}.json"
