"""The safetensors format: a JSON header and raw little-endian bytes, so that reading executes nothing.

Implemented here because it takes eighty lines, and without the dependency files load on more machines. Files are
interchangeable with those of the ``safetensors`` package. https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.agents.errors import AgentError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the format's own reader


def encoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with ``tensors`` (any device) and string ``metadata``.

    Raises:
        ValueError: a dtype that the format does not have, such as complex.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[bytes] = []
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"{name} must have a dtype of safetensors, got {tensor.dtype}.")
        # A copy as bytes: NumPy has no bfloat16.
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [position, position + len(data)]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        parts.append(data)
        position += len(data)
    text = json.dumps(header, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bytes]:
    """Tensors on the CPU, metadata, and the raw bytes of the tensors, of the file at ``path``.

    Raises:
        AgentError: it cannot be read, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AgentError(f"{path} could not be read: {error.strerror}.") from None
    try:
        length = struct.unpack_from("<Q", content)[0]
        if length > min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("its header is cut off")
        header = json.loads(content[8 : 8 + length])
        metadata = dict(header.pop("__metadata__", {}))
        data = content[8 + length :]
        tensors = _tensors(header, data)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AgentError(f"{path} is damaged or no safetensors file: {str(error) or type(error).__name__}.") from None
    return tensors, metadata, data


def _tensors(header: Mapping[str, Any], data: bytes) -> dict[str, Tensor]:
    tensors = {}
    ends = [0]
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
        if start != ends[-1] or end > len(data) or end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the bytes of {name} do not fit its shape")
        ends.append(end)
        # bytearray: what a tensor shares must be writable.
        flat = torch.frombuffer(bytearray(data[start:end]), dtype=dtype) if end > start else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
    if ends[-1] != len(data):
        raise ValueError(f"{len(data) - ends[-1]} bytes follow its last tensor")
    return tensors
