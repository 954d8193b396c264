"""Sizes of the published networks, what they normalize, and where they are noisy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchrl_reg.modules import NetSettings, NoisyLinear, q_network, quantile_network
from torchrl_reg.modules.rebuilding import Spaces
from torchrl_reg.modules.torsos import ChannelNorm, NatureCNN, normalization

CARTPOLE = Spaces({"observation": ([4], "float32")}, 2, [], [])
ASTERIX = Spaces({"observation": ([4, 10, 10], "bool")}, 6, [], [])
MINATAR = {"name": "minatar", "num_cells": [128], "image_divisor": 255.0, "initialization": "he_normal"}


@pytest.mark.parametrize(
    ("settings", "env", "parameters"),
    [
        ({"num_cells": [120, 84], "layer_norm": "image"}, CARTPOLE, 11_342),  # CleanRL's
        ({"num_cells": [256, 256], "layer_norm": "channels"}, CARTPOLE, 68_610),
        (MINATAR | {"layer_norm": "channels"}, ASTERIX, 132_854),
        (MINATAR | {"layer_norm": "image"}, ASTERIX, 132_854 + 2_016),
    ],
)
def test_numbers_of_parameters(settings: dict, env: Spaces, parameters: int) -> None:
    network = q_network(NetSettings(**settings), env)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_nature_network_has_as_many_as_published() -> None:
    make = normalization("channels", 1e-6)
    head = [nn.Linear(3136, 512), *make([512]), nn.Linear(512, 6)]
    assert sum(p.numel() for p in nn.Sequential(NatureCNN(normalization=make), *head).parameters()) == 1_688_550


def test_beyond_the_rainbow_has_as_many_as_published() -> None:
    """2.91M means and 5.28M with the sigmas; spectral norm on the twelve residual convolutions, no noise elsewhere."""
    atari = Spaces({"observation": ([4, 84, 84], "uint8")}, 18, [], [])
    settings = NetSettings("impala", num_cells=[512], dueling="mean", noise_sigma=0.5, first_cosine=0)
    network = quantile_network(settings, atari)  # type: ignore[arg-type]
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    sigmas = sum(p.numel() for name, p in network.named_parameters() if "sigma" in name)
    assert count == {"torso": 389_024, "embedding": 149_760, "head": 2 * 2_370_067} and sigmas == 2_370_067
    assert sum("parametrizations.weight.original" in name for name, _ in network.named_parameters()) == 12
    hidden, images = [], torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
    for layer in network.modules():
        if isinstance(layer, nn.MaxPool2d | nn.AdaptiveMaxPool2d):
            layer.register_forward_hook(lambda *called: hidden.append(called[2].shape[-1]))
    assert network(images, torch.rand(1, 8)).shape == (1, 8, 18) and hidden == [42, 21, 11, 6]


@pytest.mark.parametrize(("shares", "layers"), [(False, 4), (True, 3)])
def test_streams_of_rainbow(shares: bool, layers: int) -> None:
    """Each stream its own hidden layer, or one for both; noisy where asked for, and not in the convolution."""
    settings = NetSettings(**MINATAR, dueling="mean", noise_sigma=0.1, dueling_shares_hidden=shares)
    network = q_network(settings, ASTERIX, values_per_action=51)  # type: ignore[arg-type]
    noisy = [layer for layer in network.modules() if isinstance(layer, NoisyLinear)]
    assert len(noisy) == layers == sum(isinstance(layer, nn.Linear) for layer in network.modules())
    assert network(torch.rand(2, 4, 10, 10) < 0.3).shape == (2, 51 * 6)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("noise_sigma", -0.1), ("first_cosine", 2), ("dueling", "median"), ("impala_width", 0)],
)
def test_refused_settings(name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=name):
        q_network(NetSettings(**{name: bad}), CARTPOLE)  # type: ignore[arg-type]


def test_norms_stand_before_each_relu_with_their_epsilon() -> None:
    settings = NetSettings(**MINATAR | {"layer_norm": "channels", "layer_norm_eps": 1e-6})
    layers = [layer for layer in q_network(settings, ASTERIX).modules() if not list(layer.children())]  # type: ignore[arg-type]
    kinds = [nn.Conv2d, ChannelNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert {layer.eps for layer in layers if isinstance(layer, nn.LayerNorm)} == {1e-6}
