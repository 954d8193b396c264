"""Files that are either whole or absent, whatever kills the process."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes ``content`` to a temporary neighbour, syncs it, and renames it to ``path``."""
    partial = partial_path(path)
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    publish(partial, path)


def way_out(error: BaseException, folder: Path) -> str:
    """What to do about an ``error`` of writing into a run's ``folder``."""
    if not folder.exists():
        return f"{folder} is gone, with its checkpoints: put it back from a copy, or the same command starts anew"
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"earlier checkpoints are untouched, so make {folder} writable and run the same command to continue"
    return "earlier checkpoints are intact, so free some space and run the same command to continue"


def append(path: Path, data: bytes) -> None:
    """Adds ``data`` to the end of ``path``, in one system call unless the disk is about to be full."""
    with open(path, "ab", buffering=0) as file:
        written = file.write(data)
        # Writing the rest raises the reason: a short write alone would pass for a whole one.
        while written < len(data):
            written += file.write(data[written:])


def partial_path(path: Path) -> Path:
    """Where ``path`` is written before it is published; ``remove_partial_files`` knows the form."""
    return path.with_name(f".{path.name}.partial")


def publish(partial: Path, path: Path) -> None:
    """Renames the finished ``partial`` to ``path`` once its content, and then the name, is on disk."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Blocks until the content of a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
