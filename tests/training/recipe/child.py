"""The body of a child process of the tests: the tiny recipe's command line, output to files."""

from __future__ import annotations

import os
import sys
import warnings
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

    from torchrl_reg.training import recipe

    recipe(tiny_dqn.Config, tiny_dqn.train)()
