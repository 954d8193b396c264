"""TensorBoard and W&B as extra views of a run, through TorchRL's loggers; never the record."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from torchrl.record.loggers import Logger

from torchrl_reg.training.errors import ConfigError


def check_loggers(names: Sequence[str]) -> None:
    """Raises ``ConfigError`` when the package behind a name is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.loggers=[{name}] needs the package {name}, got none: pip install {name}.")


def open_loggers(names: Sequence[str], path: Path) -> list[Logger]:
    """One TorchRL logger per name, writing below ``path``."""
    return [_open(name, path) for name in names]


def _open(name: str, path: Path) -> Logger:
    if name == "tensorboard":
        from torchrl.record.loggers.tensorboard import TensorboardLogger

        return TensorboardLogger(exp_name="tensorboard", log_dir=str(path))
    from torchrl.record.loggers.wandb import WandbLogger

    (path / "wandb").mkdir(parents=True, exist_ok=True)
    # The same id on resume continues the same W&B run.
    identity = "-".join(path.resolve().parts[-4:]).replace("=", "_").replace(",", "_")[-100:]
    return WandbLogger(exp_name=path.name, save_dir=str(path), id=identity, project="torchrl_reg")
