"""The digest of the code that a sweep runs; imported by the elements of an array, and so without other packages."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

_NOT_CODE = {"__pycache__", "results", "outputs", "multirun"}
# Copied, since recipes may import it, but nothing here changes what a run computes.
_READS_RUNS = ("torchrl_reg/lab/analysis/", "torchrl_reg/lab/commands/", "slurm/")
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
    """Of all files that may change what a run computes."""
    found = sha256()
    for name, path in files.items():
        if name.endswith(_DOCUMENTS) or (name.startswith(_READS_RUNS) and name != _ELEMENT):
            continue
        found.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()


def is_edited(copy: Path, launched: str) -> bool:
    """Whether a copy of the code is no longer that whose digest was ``launched``."""
    files = {path.relative_to(copy).as_posix(): path for path in copy.rglob("*")}
    return digest(only_code(files)) != launched
