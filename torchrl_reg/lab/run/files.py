"""Atomic writes, and TensorDicts and NumPy arrays as plain data for checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_reg.compat import tree_map, tree_map_only


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


_ARRAY = "numpy array"


def pack_tensordict(tensordict: TensorDictBase) -> dict[str, Any]:
    """Copies of the leaves on the CPU, and the batch size."""
    leaves = tensordict.items(include_nested=True, leaves_only=True)
    entries = [(key, value.detach().cpu().clone()) for key, value in leaves]
    return {"batch_size": tensordict.batch_size, "entries": entries}


def unpack_tensordict(packed: dict[str, Any], device: torch.device | None = None) -> TensorDict:
    """The inverse of :func:`pack_tensordict`, with leaves on ``device`` (default: the CPU)."""
    entries = {key: value if device is None else value.to(device) for key, value in packed["entries"]}
    return TensorDict(entries, packed["batch_size"])  # type: ignore[arg-type]


def pack_arrays(data: Any) -> Any:
    """``data`` with every NumPy array in its lists, tuples and dicts as a tensor."""
    return tree_map(_packed, data)


def _packed(leaf: object) -> object:
    if isinstance(leaf, np.ndarray):
        return {_ARRAY: torch.from_numpy(leaf.copy())}
    return leaf.item() if isinstance(leaf, np.generic) else leaf


def unpack_arrays(data: Any) -> Any:
    """The inverse of :func:`pack_arrays`."""
    return tree_map(lambda leaf: leaf[_ARRAY].numpy() if _is_array(leaf) else leaf, data, is_leaf=_is_array)


def _is_array(node: object) -> bool:
    return isinstance(node, dict) and node.keys() == {_ARRAY}


def own_memory(state: Any) -> Any:
    """``state`` with copies of tensors that view a larger one: torch.save would write the whole of it."""
    return tree_map_only(torch.Tensor, _copy_of_view, state)


def _copy_of_view(tensor: torch.Tensor) -> torch.Tensor:
    is_view = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if is_view else tensor
