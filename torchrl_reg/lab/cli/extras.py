"""Packages and an operating system that runs need and the library does not: one sentence, not a traceback."""

from __future__ import annotations

import importlib.util
import sys

#: Module -> the package that brings it.
NEEDED = {"hydra": "hydra-core", "omegaconf": "omegaconf", "yaml": "pyyaml", "tqdm": "tqdm", "greenlet": "greenlet"}
NEEDED |= {"safetensors": "safetensors"}


class MissingExtraError(ImportError):
    """``torchrl_reg.lab`` cannot be imported; the message says what to install."""

    user_error = True


def check_extras() -> None:
    """Raises ``MissingExtraError`` unless all of ``NEEDED`` is there; a script that lets it pass prints one line."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    said = f"torchrl_reg.lab needs {', '.join(missing)}, got none: pip install 'torchrl_reg[recipes]'."
    try:
        import torchrl_reg.lab.run.run_owner  # noqa: F401
    except ImportError as error:  # of Windows
        missing, said = ["POSIX"], str(error)
    if missing:
        shown = sys.excepthook
        sys.excepthook = lambda kind, error, trace: (
            print(error, file=sys.stderr) if isinstance(error, MissingExtraError) else shown(kind, error, trace)
        )
        raise MissingExtraError(said)
