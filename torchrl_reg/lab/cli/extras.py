"""Packages and an operating system that runs need and the library does not: one sentence, not a traceback."""

from __future__ import annotations

import importlib.util
import signal
import sys

#: Module -> the package that brings it.
NEEDED = {"hydra": "hydra-core", "omegaconf": "omegaconf", "yaml": "pyyaml", "tqdm": "tqdm", "greenlet": "greenlet"}
NEEDED |= {"safetensors": "safetensors", "filelock": "filelock"}


def check_posix() -> None:
    """Raises ``ImportError`` on Windows."""
    if not hasattr(signal, "SIGUSR1"):
        said = (
            "Runs and sweeps need POSIX signals, which Windows lacks: use WSL. Losses, modules, environments, planning "
        )
        raise ImportError(f"{said}and load_policy work without.")


def check_extras() -> None:
    """Raises ``ImportError`` unless all of ``NEEDED`` is there; a script that lets it pass prints one line."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    try:
        check_posix()
        if missing:
            needs = f"torchrl_reg.lab needs {', '.join(missing)}, got none"
            raise ImportError(f"{needs}: pip install 'torchrl_reg[recipes]'.")
    except ImportError as missed:
        shown, message = sys.excepthook, str(missed)
        sys.excepthook = lambda kind, error, trace: (
            print(message, file=sys.stderr) if str(error) == message else shown(kind, error, trace)
        )
        raise
