"""TensorDicts and NumPy arrays as plain data for checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase

from torchrl_reg.compat import tree_map, tree_map_only

_ARRAY = "numpy array"


def pack_tensordict(tensordict: TensorDictBase) -> dict[str, Any]:
    """Copies of the leaves on the CPU, and the batch size."""
    leaves = tensordict.items(include_nested=True, leaves_only=True)
    entries = [(key, value.detach().cpu().clone()) for key, value in leaves]
    return {"batch_size": tensordict.batch_size, "entries": entries}


def unpack_tensordict(packed: dict[str, Any]) -> TensorDict:
    """The inverse of :func:`pack_tensordict`, on the CPU."""
    return TensorDict(dict(packed["entries"]), packed["batch_size"])


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
