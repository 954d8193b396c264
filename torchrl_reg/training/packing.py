"""TensorDicts and NumPy arrays as plain data, which a checkpoint loads without a pickle of theirs."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

_ARRAY = "numpy array"


def pack_tensordict(tensordict: TensorDictBase) -> dict[str, Any]:
    """Copies of the leaves on the CPU, and the batch size."""
    leaves = tensordict.items(include_nested=True, leaves_only=True)
    entries = [(key, value.detach().cpu().clone()) for key, value in leaves]
    return {"batch_size": tensordict.batch_size, "entries": entries}


def unpack_tensordict(packed: dict[str, Any], device: torch.device | None = None) -> TensorDict:
    """What :func:`pack_tensordict` was given, its leaves on ``device`` (default: the CPU)."""
    entries = {key: value if device is None else value.to(device) for key, value in packed["entries"]}
    return TensorDict(entries, packed["batch_size"])  # type: ignore[arg-type]


def pack_arrays(data: Any) -> Any:
    """``data`` with every NumPy array in its lists, tuples and dicts as a tensor."""
    if isinstance(data, np.ndarray):
        return {_ARRAY: torch.from_numpy(data.copy())}
    if isinstance(data, np.generic):
        return data.item()
    if isinstance(data, dict):
        return {key: pack_arrays(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(pack_arrays(value) for value in data)
    return data


def unpack_arrays(data: Any) -> Any:
    """What :func:`pack_arrays` was given."""
    if isinstance(data, dict):
        if data.keys() == {_ARRAY}:
            return data[_ARRAY].numpy()
        return {key: unpack_arrays(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(unpack_arrays(value) for value in data)
    return data


def own_memory(state: Any) -> Any:
    """``state`` with a copy of every tensor that is a view of a larger one, which would be saved whole."""
    if isinstance(state, torch.Tensor):
        is_view = state.untyped_storage().nbytes() > state.numel() * state.element_size()
        return state.clone() if is_view else state
    if type(state) in (dict, OrderedDict):
        return type(state)((key, own_memory(value)) for key, value in state.items())
    if type(state) in (list, tuple):
        return type(state)(own_memory(value) for value in state)
    return state
