"""Writes files such that a crash leaves the old or the new content. No torch: array elements and analysis import it."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes ``content`` to a temporary file beside ``path``, syncs it, and renames it."""
    partial = partial_path(path)
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    publish(partial, path)


def write_error_advice(error: BaseException, folder: Path) -> str:
    """Advice for the user after an ``error`` while writing to a run's ``folder``."""
    if not folder.exists():
        return f"{folder} is gone, with its checkpoints: put it back from a copy, or the same command starts again"
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"earlier checkpoints are untouched, so make {folder} writable and run the same command to continue"
    return "earlier checkpoints are intact, so free some space and run the same command to continue"


def append(path: Path, data: bytes) -> None:
    """Appends ``data`` to ``path``, in one system call unless the disk fills up."""
    with open(path, "ab", buffering=0) as file:
        written = file.write(data)
        # A short write raises nothing; writing the rest raises the reason.
        while written < len(data):
            written += file.write(data[written:])


def partial_path(path: Path) -> Path:
    """The temporary file that becomes ``path``; ``remove_partial_files`` matches its name."""
    return path.with_name(f".{path.name}.partial")


def publish(partial: Path, path: Path) -> None:
    """Renames ``partial`` to ``path`` after syncing its content, then syncs the folder."""
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Blocks until the content of a file or the entries of a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
