"""The digest of a sweep's code; imported by the elements of an array, so it needs no other package."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

_NOT_CODE = {"__pycache__", "results", "outputs", "multirun"}
# Copied, as recipes may import them, but no run computes anything else if they change.
_IRRELEVANT = ("torchrl_reg/lab/analysis/", "torchrl_reg/lab/commands/", "slurm/")
_ELEMENT = "slurm/array_element.py"
_DOCUMENTS = (".md", ".png")


def only_code(files: Mapping[str, Path]) -> dict[str, Path]:
    """``files`` by name, sorted, without bytecode, results, and the hidden files and dangling links of editors."""
    return {
        name: path
        for name, path in sorted(files.items())
        if path.is_file() and "/." not in f"/{name}" and _NOT_CODE.isdisjoint(Path(name).parts)
    }


def digest(files: Mapping[str, Path]) -> str:
    """The digest of all files that affect the results of a run."""
    found = sha256()
    for name, path in files.items():
        if name.endswith(_DOCUMENTS) or (name.startswith(_IRRELEVANT) and name != _ELEMENT):
            continue
        found.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def is_edited(copy: Path, launched: str) -> bool:
    """True if the digest of a copy of the code is not ``launched``."""
    files = {path.relative_to(copy).as_posix(): path for path in copy.rglob("*")}
    return digest(only_code(files)) != launched
