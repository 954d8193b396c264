"""How settings become the names of folders, for single runs and for sweeps alike."""

from __future__ import annotations

import re
from hashlib import sha256

_LONGEST = 120


def folder_name(text: str) -> str:
    """``text`` with a dash for what a path should not hold; a name that is too long ends in a digest instead.

    >>> folder_name("algo.tau=0.1,net.num_cells=[64, 64]"), len(folder_name("x" * 500))
    ('algo.tau=0.1,net.num_cells=-64,-64-', 120)
    """
    name = re.sub(r"[^A-Za-z0-9_.=,+-]+", "-", text)
    if len(name) <= _LONGEST:
        return name
    return f"{name[: _LONGEST - 9]}-{sha256(text.encode()).hexdigest()[:8]}"
