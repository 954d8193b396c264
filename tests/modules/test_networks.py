"""Networks of PQN: their sizes, what they normalize, and how they begin."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.modules.torsos import ChannelNorm, NatureCNN, initialize_weights, normalization

CLEANRL = {"num_cells": [120, 84], "layer_norm": "image", "initialization": "orthogonal"}
CARTPOLE = {"num_cells": [256, 256], "layer_norm": "channels", "layer_norm_eps": 1e-6, "initialization": "lecun_normal"}
MINATAR = {"name": "minatar", "num_cells": [128], "image_divisor": 255.0, "initialization": "he_normal"}


@pytest.mark.parametrize(
    ("settings", "env", "parameters"),
    [
        (CLEANRL, EnvSettings("cartpole"), 11_342),
        (CARTPOLE, EnvSettings("cartpole"), 68_610),
        (MINATAR | {"layer_norm": "channels"}, EnvSettings("minatar", "asterix", minimal_actions=False), 132_854),
        (MINATAR | {"layer_norm": "image"}, EnvSettings("minatar", "asterix", minimal_actions=False), 132_854 + 2_016),
    ],
)
def test_numbers_of_parameters(settings: dict, env: EnvSettings, parameters: int) -> None:
    network = q_network(NetSettings(**settings), make_env(env, 1))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_the_nature_network_has_as_many_as_published() -> None:
    make = normalization("channels", 1e-6)
    head = [nn.Linear(3136, 512), *make([512]), nn.Linear(512, 6)]
    assert sum(p.numel() for p in nn.Sequential(NatureCNN(normalization=make), *head).parameters()) == 1_688_550


def test_channels_are_normalized_at_each_place() -> None:
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64) * 7 + 2
    norm = ChannelNorm(5, eps=1e-6).double()
    norm.weight.data.copy_(torch.arange(5.0))
    norm.bias.data.fill_(0.5)
    centered = x - x.mean(1, keepdim=True)
    expected = centered / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected * torch.arange(5.0).reshape(-1, 1, 1) + 0.5)


def test_norms_stand_before_each_relu_with_their_epsilon() -> None:
    settings = NetSettings(**MINATAR | {"layer_norm": "channels", "layer_norm_eps": 1e-6})
    network = q_network(settings, make_env(EnvSettings("minatar", "breakout"), 1))
    kinds = [type(layer) for layer in network.modules() if not list(layer.children())]
    assert kinds == [nn.Conv2d, ChannelNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    assert {layer.eps for layer in network.modules() if isinstance(layer, nn.LayerNorm)} == {1e-6}


@pytest.mark.parametrize(
    ("name", "variances"), [("lecun_normal", (1, 1)), ("he_normal", (2, 1)), ("orthogonal", (None, None))]
)
def test_how_weights_begin(name: str, variances: tuple) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(400, 300), nn.Linear(300, 200))
    initialize_weights(network, name)  # type: ignore[arg-type]
    for layer, variance in zip(network, variances, strict=True):
        weight, fan_in = layer.weight.data, layer.in_features
        assert not layer.bias.any()
        if variance is None:
            torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(len(weight)), atol=1e-4, rtol=0)
            continue
        deviation = math.sqrt(variance / fan_in)
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert weight.abs().max().item() == pytest.approx(2 * deviation / 0.8796, rel=0.01)
