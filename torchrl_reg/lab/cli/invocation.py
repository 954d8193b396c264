"""Where scripts lie, and the words that the user typed to start one, for ``command.txt``, help and hints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_typed: tuple[str, ...] = ()
_PACKAGE = Path(__file__).resolve().parents[2]


def script_folder(name: str) -> Path:
    """The folder ``recipes`` or ``slurm`` of the wheel or checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


@contextmanager
def started_as(*words: str) -> Iterator[None]:
    """Sets the typed words for a script that runs inside, e.g. ``("torchrl-reg", "run", "m_dqn")``."""
    global _typed
    before, _typed = _typed, words
    try:
        yield
    finally:
        _typed = before


def typed_words() -> tuple[str, ...]:
    """The typed words; empty where Python started the script directly."""
    return _typed


def as_typed(text: str) -> str:
    """``text`` with ``torchrl-reg launch`` for ``python slurm/launch.py`` where the user typed that."""
    if not _typed:
        return text
    text = re.sub(r"python slurm/(\w+)\.py", r"torchrl-reg \1", text)
    return re.sub(r"python recipes/(\w+)\.py", r"torchrl-reg run \1", text)
