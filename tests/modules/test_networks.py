"""Networks of PQN: their sizes, and what they normalize."""

from __future__ import annotations

import pytest
from torch import nn

from torchrl_reg.modules import NetSettings, q_network
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


def test_norms_stand_before_each_relu_with_their_epsilon() -> None:
    settings = NetSettings(**MINATAR | {"layer_norm": "channels", "layer_norm_eps": 1e-6})
    layers = [layer for layer in q_network(settings, ASTERIX).modules() if not list(layer.children())]  # type: ignore[arg-type]
    kinds = [nn.Conv2d, ChannelNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    assert {layer.eps for layer in layers if isinstance(layer, nn.LayerNorm)} == {1e-6}
