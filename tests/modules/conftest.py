"""Actors on a box of up to three dimensions, and states for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_reg.modules import (
    AutoregressiveMulticategoricalActor,
    FlowActor,
    MulticategoricalActor,
    StochasticSamplerActor,
    gaussian_actor,
)

LOW, HIGH, BINS = [-2.3, -1.0, 0.0], [0.7, 1.0, 3.0], [3, 4, 2]


def built(kind: str, dims: int = 3, inputs: int = 4, **arguments: Any) -> Any:
    """An actor of this kind, far enough from its beginning that differences show."""
    torch.manual_seed(0)
    box: dict[str, Any] = {"low": LOW[:dims], "high": HIGH[:dims]} | arguments
    torso = nn.Linear(inputs, 8)
    if kind == "gaussian":
        return gaussian_actor(nn.Linear(inputs, 2 * dims), **box)
    if kind == "multicategorical":
        return MulticategoricalActor(nn.Linear(inputs, sum(BINS[:dims])), **{"num_bins": BINS[:dims]} | box)
    if kind == "sampler":
        return StochasticSamplerActor(torso, 8, **{"num_cells": [8]} | box)
    if kind == "flow":
        actor = FlowActor(torso, 8, **{"num_cells": 8} | box)
        nn.init.normal_(actor.weight_out, std=0.2)
        nn.init.normal_(actor.bias_out, std=0.2)
        return actor
    actor = AutoregressiveMulticategoricalActor(torso, 8, **{"num_bins": BINS[:dims], "num_cells": 16} | box)
    with torch.no_grad():
        actor.previous.weight.mul_(8)
        actor.output.weight.mul_(8)
    return actor


@pytest.fixture
def make() -> Callable[..., Any]:
    """``make(kind, dims=3, inputs=4, **arguments)``: an actor."""
    return built


@pytest.fixture
def states() -> Callable[..., TensorDict]:
    """``states(*batch, dtype=float32)``: observations of four numbers."""

    def drawn(*batch: int, dtype: torch.dtype = torch.float32) -> TensorDict:
        observation = torch.randn(*batch, 4, generator=torch.Generator().manual_seed(1))
        return TensorDict({"observation": observation.to(dtype)}, batch)

    return drawn


@pytest.fixture
def all_indices() -> Callable[[list[int]], Tensor]:
    """Every combination of so many bins, ``[prod(num_bins), D]``."""
    return lambda num_bins: torch.cartesian_prod(*(torch.arange(k) for k in num_bins))
