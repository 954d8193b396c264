"""Packages and an operating system that runs need and the library does not; what is missing is one sentence."""

from __future__ import annotations

import importlib.util
import signal
import sys

#: Module -> the package that contains it.
NEEDED = {"hydra": "hydra-core", "omegaconf": "omegaconf", "yaml": "pyyaml", "tqdm": "tqdm", "greenlet": "greenlet"}
NEEDED |= {"safetensors": "safetensors", "filelock": "filelock"}


def check_posix() -> None:
    """Raises ``ImportError`` on Windows."""
    if not hasattr(signal, "SIGUSR1"):
        raise ImportError(
            "Runs and sweeps need POSIX signals, which Windows lacks: use WSL. "
            "Losses, modules, environments, planning and load_policy work without."
        )


def check_extras() -> None:
    """Raises ``ImportError`` unless all of ``NEEDED`` is installed; uncaught, it is printed as one line."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    try:
        check_posix()
        if missing:
            needs = f"torchrl_reg.lab needs {', '.join(missing)}, got none"
            raise ImportError(f"{needs}: pip install 'torchrl_reg[recipes]'.")
    except ImportError as failure:
        previous, message = sys.excepthook, str(failure)
        sys.excepthook = lambda kind, error, trace: (
            print(message, file=sys.stderr) if str(error) == message else previous(kind, error, trace)
        )
        raise
