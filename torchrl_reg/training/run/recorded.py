"""A run that is recorded: its folder, its rows and its end, whatever happens in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torchrl_reg.training.errors import ConfigError
from torchrl_reg.training.run.device import set_up_cpu
from torchrl_reg.training.run.logger import RunLogger
from torchrl_reg.training.run.run_folder import RunFolder


class Recorded:
    """The folder and the record that a :class:`Run` (a loop over batches) and a :class:`Study` have in common.

    Args:
        config: a dataclass with a field ``run`` of type :class:`RunSettings`.
        device: where it computes, for ``config.yaml`` and the provenance.

    Attributes:
        path: the run folder.
        settings: ``config.run``.
        device: as given.
        frames: environment frames (of a study: the recipe's unit) counted so far.

    Raises:
        ConfigError: the folder belongs to another run or holds a finished one, or a logger is not installed.
    """

    def __init__(self, config: Any, device: torch.device) -> None:
        self.settings, self.device, self.frames = config.run, device, 0
        self._folder = RunFolder(config)
        self.path: Path = self._folder.path
        if self._folder.is_done:
            raise ConfigError(f"run.dir={self.path} holds a finished run.")
        self._logger = RunLogger(self.path, self.settings)
        set_up_cpu(self.settings.threads)

    def log(self, event: str, **columns: Any) -> None:
        """Writes a row of the recipe's own: ``{"event": event, "frames": ..., **columns}``."""
        self._logger.write({"event": event, "frames": self.frames, **columns})

    def say(self, text: str) -> None:
        """Prints a line where the progress is shown."""
        self._logger.say(text)

    def _close(self, facts: dict[str, Any]) -> Path:
        """Writes ``done.json`` with the ``facts`` beside what every run says of its end."""
        wall_seconds, evaluation = self._logger.wall_seconds(), self._logger.last_evaluation
        self._folder.close({"frames": self.frames, "wall_seconds": wall_seconds, "evaluation": evaluation, **facts})
        self.say(f"finished: {self.path}")
        return self.path
