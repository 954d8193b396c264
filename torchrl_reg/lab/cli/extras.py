"""Packages and an operating system that runs need and the library does not: one sentence, not a traceback."""

from __future__ import annotations

import importlib.util
import signal
import sys

#: Module -> the package that brings it.
NEEDED = {"hydra": "hydra-core", "omegaconf": "omegaconf", "yaml": "pyyaml", "tqdm": "tqdm", "greenlet": "greenlet"}
NEEDED |= {"safetensors": "safetensors", "filelock": "filelock"}


class MissingExtraError(ImportError):
    """``torchrl_reg.lab`` cannot be imported; the message says what to install."""

    user_error = True


def check_posix() -> None:
    """Raises ``MissingExtraError`` on Windows."""
    if not hasattr(signal, "SIGUSR1"):
        said = (
            "Runs and sweeps need POSIX signals, which Windows lacks: use WSL. Losses, modules, environments, planning "
        )
        raise MissingExtraError(f"{said}and load_policy work without.")


def check_extras() -> None:
    """Raises ``MissingExtraError`` unless all of ``NEEDED`` is there; a script that lets it pass prints one line."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    try:
        check_posix()
        if missing:
            needs = f"torchrl_reg.lab needs {', '.join(missing)}, got none"
            raise MissingExtraError(f"{needs}: pip install 'torchrl_reg[recipes]'.")
    except MissingExtraError:
        shown = sys.excepthook
        sys.excepthook = lambda kind, error, trace: (
            print(error, file=sys.stderr) if isinstance(error, MissingExtraError) else shown(kind, error, trace)
        )
        raise
