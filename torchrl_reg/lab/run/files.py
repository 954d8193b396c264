"""Files that are whole or absent, and TensorDicts as plain data in them."""

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


_ARRAY = "numpy array"


def pack_tensordict(tensordict: TensorDictBase) -> dict[str, Any]:
    """Copies of the leaves on the CPU, and the batch size."""
    leaves = tensordict.items(include_nested=True, leaves_only=True)
    entries = [(key, value.detach().cpu().clone()) for key, value in leaves]
    return {"batch_size": tensordict.batch_size, "entries": entries}


def unpack_tensordict(packed: dict[str, Any], device: torch.device | None = None) -> TensorDict:
    """Restores what :func:`pack_tensordict` was given, its leaves on ``device`` (default: the CPU)."""
    entries = {key: value if device is None else value.to(device) for key, value in packed["entries"]}
    return TensorDict(entries, packed["batch_size"])  # type: ignore[arg-type]


def pack_arrays(data: Any) -> Any:
    """``data`` with every NumPy array in its lists, tuples and dicts as a tensor."""
    return tree_map(_packed, data)


def _packed(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return {_ARRAY: torch.from_numpy(leaf.copy())}
    return leaf.item() if isinstance(leaf, np.generic) else leaf


def unpack_arrays(data: Any) -> Any:
    """Restores what :func:`pack_arrays` was given."""
    return tree_map(lambda leaf: leaf[_ARRAY].numpy() if _is_array(leaf) else leaf, data, is_leaf=_is_array)


def _is_array(node: Any) -> bool:
    return isinstance(node, dict) and node.keys() == {_ARRAY}


def own_memory(state: Any) -> Any:
    """``state`` with a copy of every tensor that is a view of a larger one, which would be saved whole."""
    return tree_map_only(torch.Tensor, _without_rest, state)


def _without_rest(tensor: torch.Tensor) -> torch.Tensor:
    is_view = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if is_view else tensor
