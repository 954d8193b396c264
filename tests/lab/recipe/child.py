"""Bodies of child processes of the tests."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import warnings
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


def hold_folder(folder: str, has_locks: bool, told: Connection) -> None:
    """Owns the run folder, on a file system with or without ``flock``, until the process is killed."""
    from torchrl_reg.lab.run.ownership import FolderLock

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not has_locks:
        fcntl.flock = no_locks
    lock = FolderLock(Path(folder))
    told.send("held")
    told.recv()
    lock.release()
