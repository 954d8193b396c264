"""Slot 3 as objects: expected values, implicit and fixed quantiles, atoms; chosen by the actor handed to a loss."""

from __future__ import annotations

from typing import Any

from torchrl_reg.objectives.heads.categorical import Categorical
from torchrl_reg.objectives.heads.expected import ExpectedValue
from torchrl_reg.objectives.heads.head import Head
from torchrl_reg.objectives.heads.quantiles import FixedQuantiles, ImplicitQuantiles

__all__ = ["Categorical", "ExpectedValue", "FixedQuantiles", "Head", "ImplicitQuantiles", "head_of"]


def head_of(network: Any) -> type[Head]:
    """The kind of head that reads a Q-value actor; an expected value for any other network."""
    kinds = (ImplicitQuantiles, FixedQuantiles, Categorical)
    return next((kind for kind in kinds if isinstance(network, kind.actor_type)), ExpectedValue)
