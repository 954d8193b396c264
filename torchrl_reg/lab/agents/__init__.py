"""Trained agents: save, load, evaluate, play, export.

Needs torch, torchrl, gymnasium and safetensors, but neither Hydra nor recipes. Nothing is unpickled.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchrl_reg.lab.errors import UserError

if TYPE_CHECKING:
    from torchrl_reg.lab.agents.saved import SavedPolicy, load_policy, read_policy, save_policy

__all__ = ["UserError", "SavedPolicy", "load_policy", "read_policy", "save_policy"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Lazy import: `torchrl-reg list` runs without torch.
    if name in __all__:
        return getattr(importlib.import_module("torchrl_reg.lab.agents.saved"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
