"""What all actors on a box share: bounds, the squash, dtypes, and the refusal of what is no network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical

from torchrl_reg.modules import (
    AutoregressiveMulticategoricalActor,
    CategoricalQActor,
    FixedQuantileQActor,
    FlowActor,
    ImplicitQuantileNetwork,
    MulticategoricalActor,
    QuantileQActor,
    SingleDimensionActor,
    StochasticSamplerActor,
    gaussian_actor,
)

BOX = {"low": [-1.0, -1.0], "high": [1.0, 1.0]}


def test_a_number_bounds_every_dimension() -> None:
    actor = StochasticSamplerActor(nn.Identity(), 4, low=-1.0, high=[1.0, 2.0])
    assert actor.low.tolist() == [-1.0, -1.0] and len(actor.high) == 2
    with pytest.raises(ValueError, match=r"numbers or vectors \[D\], got shapes \[2\] and \[3\]"):
        StochasticSamplerActor(nn.Identity(), 4, low=[0.0] * 2, high=[1.0] * 3)


def test_squashed_samples_lie_in_the_box_whatever_is_rounded() -> None:
    actor = StochasticSamplerActor(nn.Identity(), 4, low=torch.linspace(-3.0, -1.0, 200), high=0.1)
    for u in (-20.0, 20.0):
        action = actor.squashed(torch.full((200,), u))
        assert (action >= actor.low).all() and (action <= actor.high).all()
    assert (actor.low + (actor.high - actor.low) > actor.high).any()


@pytest.mark.parametrize("kind", [FlowActor, StochasticSamplerActor])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_actor_on_a_torso_has_its_dtype(kind: Any, dtype: torch.dtype) -> None:
    actor = kind(nn.Linear(4, 8).to(dtype), 8, low=torch.tensor([-2.3, -1.0]), high=torch.tensor([0.7, 1.0]))
    out = actor(TensorDict({"observation": torch.randn(3, 4, dtype=dtype)}, [3]))
    assert out["action"].dtype == actor.low.dtype == dtype


@pytest.mark.parametrize("network", [None, nn.Linear, "torso"], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda network: gaussian_actor(network, **BOX),
        lambda network: FlowActor(network, 4, **BOX),
        lambda network: StochasticSamplerActor(network, 4, **BOX),
        lambda network: MulticategoricalActor(network, **BOX, num_bins=3),
        lambda network: AutoregressiveMulticategoricalActor(network, 4, **BOX, num_bins=3),
        lambda network: ImplicitQuantileNetwork(network, num_features=4, num_actions=2),
        lambda network: CategoricalQActor(network, spec=Categorical(2)),
        lambda network: FixedQuantileQActor(network, spec=Categorical(2)),
        lambda network: QuantileQActor(network, spec=Categorical(2)),
        SingleDimensionActor,
    ],
)
def test_what_is_no_network_is_refused_when_it_is_given(make: Any, network: Any) -> None:
    with pytest.raises(ValueError, match="(network|torso|actor) must be a.*, got") as error:
        make(network)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
