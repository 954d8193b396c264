"""The trained agents that come with the package; without torch, for ``torchrl-reg list``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "trained"
_SUFFIX = ".safetensors"


def trained_agents() -> dict[str, Path]:
    """The file of each, by name: method and environment."""
    files = sorted(_FOLDER.rglob(f"*{_SUFFIX}"))
    return {file.relative_to(_FOLDER).as_posix().removesuffix(_SUFFIX): file for file in files}


def facts_of(file: Path) -> dict[str, Any]:
    """What is known of an agent, without reading its weights: ``env``, ``run``, ``evaluation`` and ``training``.

    ``training`` holds its ``command``, ``commit``, ``frames``, and the last greedy evaluation of each seed, ``scores``.
    """
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return dict(json.loads(header["__metadata__"]["content"])["facts"])
