"""Names of run folders, and the state and last log line of a run.

The elements of a SLURM array import this, so it needs neither torch nor numpy nor :mod:`torchrl_reg.lab.analysis`.
"""

from __future__ import annotations

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from torchrl_reg.lab.printable import printable

_MAX_NAME = 120
_TAIL_BYTES = 16_384
# Lines that srun appends to a log, after the line that names the failure.
_SRUN = re.compile("srun: (error: .*Exited with exit code|Force Terminated|Terminating|Job step aborted)")


def with_targets(config: dict[str, Any]) -> dict[str, Any]:
    """Flat settings with the ``path: module:Name`` of older runs as ``_target_``.

    >>> with_targets({"head.path": "torchrl_reg.objectives.heads:Categorical", "shaping.path": None, "algo.tau": 1})
    {'head._target_': 'torchrl_reg.objectives.heads.Categorical', 'algo.tau': 1}
    """
    found = dict[str, Any]()
    for name, value in config.items():
        if not name.endswith(".path"):
            found[name] = value
        elif value is not None:
            found[f"{name.removesuffix('path')}_target_"] = str(value).replace(":", ".")
    return found


def folder_name(text: str) -> str:
    """``text`` with dashes for characters unsafe in a path; a long name is truncated and ends in a digest.

    >>> folder_name("algo.tau=0.1,net.num_cells=[64, 64]"), len(folder_name("x" * 500))
    ('algo.tau=0.1,net.num_cells=-64,-64-', 120)
    """
    name = re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", text)
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}-{sha256(text.encode()).hexdigest()[:8]}"


def is_done(run: Path) -> bool:
    """True if the run has finished; a crash may leave an empty ``done.json``, which does not count."""
    done = run / "done.json"
    return done.is_file() and done.stat().st_size > 0


def error_line(log: Path) -> str:
    """The exception line of the last traceback in a log, safe to print; empty without a traceback."""
    lines = _tail(log)
    for i in range(len(lines) - 1, -1, -1):
        at_exit = i and lines[i - 1].startswith("Exception ignored in")  # while the interpreter shuts down
        if lines[i] == "Traceback (most recent call last):" and not at_exit:
            return printable(next((line for line in lines[i + 1 :] if line and line[0] != " "), ""))
    return ""


def last_line(log: Path) -> str:
    """The exception line of a log, or else its last line that is not from srun; safe to print."""
    lines = (line.strip() for line in reversed(_tail(log)))
    return error_line(log) or printable(next((line for line in lines if line and not _SRUN.match(line)), ""))


def _tail(log: Path) -> list[str]:
    """The last lines of a log, since the last start of its run (``=== ...``)."""
    try:
        if not log.is_file():  # reading a pipe may not end
            return []
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    begins = [i for i, line in enumerate(lines) if line.startswith("=== ")]
    return lines[begins[-1] + 1 if begins else 0 :]
