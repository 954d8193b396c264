"""The trained agents in the package; imports no torch, for ``torchrl-reg list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "trained"
_SUFFIX = ".safetensors"


def trained_agents() -> dict[str, Path]:
    """The file of each agent by name, ``<method>/<environment>``."""
    files = sorted(_FOLDER.rglob(f"*{_SUFFIX}"))
    return {file.relative_to(_FOLDER).as_posix().removesuffix(_SUFFIX): file for file in files}


def facts_of(file: Path) -> dict[str, Any]:
    """The record of an agent, read without its weights: ``env``, ``run``, ``evaluation`` and ``training``.

    ``training`` has ``command``, ``commit``, ``frames`` and ``scores``, the last greedy evaluation of each seed.
    """
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return dict(json.loads(header["__metadata__"]["content"])["facts"])
