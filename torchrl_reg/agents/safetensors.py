"""Files of the ``safetensors`` package: a JSON header and raw bytes, so that reading one executes nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.agents.errors import AgentError

#: Bytes of a file that is read; the largest networks of the recipes take 30 million.
_LARGEST = 1 << 30


def encoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with ``tensors`` (any device) and string ``metadata``."""
    # Cloned: the package refuses tensors that share memory.
    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return _package().save(plain, dict(metadata))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], memoryview]:
    """Tensors on the CPU, metadata, and the raw bytes of the tensors, of the file at ``path``.

    Raises:
        AgentError: it cannot be read, is too large, or damaged.
    """
    package = _package()
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise AgentError(f"{path} must be at most {_LARGEST >> 30} GiB, got {size:,} bytes.")
        content = path.read_bytes()
    except OSError as error:
        raise AgentError(f"{path} could not be read: {error.strerror}.") from None
    try:
        tensors = package.load(content)
    except Exception as error:  # SafetensorError, or a dtype that this torch does not have
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise AgentError(f"{path} is damaged or no safetensors file: {reason}.") from None
    end = 8 + int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8:end]).get("__metadata__", {}), memoryview(content)[end:]


def _package() -> Any:
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError:
        raise AgentError("A saved policy needs safetensors, got none: pip install 'torchrl_reg[recipes]'.") from None
