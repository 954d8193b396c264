"""Weights in 8 bits, for the agents that come with the package."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE = ".scale"
_LEAST = 4_096  # numbers of a tensor that is worth it


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with large matrices ``w [N, ...]`` as int8 ``round(w / s)`` and ``s [N] = max|w_n| / 127`` beside."""
    small: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() < 2 or tensor.numel() < _LEAST or not tensor.is_floating_point():
            small[name] = tensor
            continue
        rows = tensor.flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / 127
        levels = torch.where(scale > 0, rows / scale, 0.0).round()
        small |= {name: levels.to(torch.int8).reshape(tensor.shape), name + _SCALE: scale.squeeze(1)}
    return small


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights ``int8 * s [N, 1, ...]`` of :func:`packed`; anything else as it is."""
    scales = {name: tensor for name, tensor in tensors.items() if _is_scale(name, tensors)}
    weights = {name: tensor for name, tensor in tensors.items() if name not in scales}
    for name, scale in scales.items():
        levels = weights[name.removesuffix(_SCALE)]
        weights[name.removesuffix(_SCALE)] = levels * scale.reshape(-1, *[1] * (levels.dim() - 1))
    return weights


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    levels = tensors.get(name.removesuffix(_SCALE)) if name.endswith(_SCALE) else None
    return levels is not None and levels.dtype == torch.int8
