"""Bodies of child processes of the tests."""

from __future__ import annotations

import fcntl
import os
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

SCRIPT = Path(__file__).parent / "tiny_dqn.py"


def run_tiny_recipe(arguments: list[str], folder: str) -> None:
    """Runs ``python tiny_dqn.py *arguments`` in ``folder``; appends to stdout.txt and stderr.txt."""
    os.chdir(folder)
    for descriptor, name in ((1, "stdout.txt"), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    warnings.simplefilter("ignore")
    sys.argv = [str(SCRIPT), *arguments]
    import tiny_dqn

    from torchrl_reg.lab import recipe

    recipe(tiny_dqn.Config, tiny_dqn.train)()


def failing_flock(number: int) -> Callable[..., None]:
    """``fcntl.flock`` of a file system without locks."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def hold_lock(path: str, error: int | None, told: Connection) -> None:
    """Holds the lock, on a file system where ``flock`` fails with ``error``, until the process is killed."""
    from torchrl_reg.lab.run.lock import acquire

    if error:
        fcntl.flock = failing_flock(error)
    _held = acquire(Path(path))
    told.send("held")
    told.recv()
