"""Published networks: sizes, torsos, norms, noisy layers, initialization."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchrl_reg.modules import NetSettings, NoisyLinear, q_network, quantile_network
from torchrl_reg.modules.ensembles import FullPrecision, OutputLinear, stack_layers
from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.modules.networks import (
    ChannelNorm,
    ImpalaCNN,
    MinAtarCNN,
    NatureCNN,
    initialize_weights,
    normalization,
)
from torchrl_reg.modules.rebuilding import Spaces

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
        ({"name": "minatar", "num_cells": [], "padding": "same"}, ASTERIX, 592 + 9_606),  # Revisiting Rainbow's
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


def _around_50(settings: NetSettings, env: Spaces, *, quantiles: bool) -> nn.Module:
    """A network with outputs of about 50, where bfloat16 has steps of .25."""
    network = (quantile_network if quantiles else q_network)(settings, env)  # type: ignore[arg-type]
    outputs = [layer for layer in network.modules() if isinstance(layer, FullPrecision)]
    assert len(outputs) == (1 if settings.dueling == "none" else 2)
    nn.init.constant_(outputs[0].bias, 50.0)
    return network


def _passed(network: Callable[..., torch.Tensor], *inputs: torch.Tensor, lowered: bool) -> torch.Tensor:
    torch.manual_seed(0)  # of noisy layers
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        return network(*inputs)


@pytest.mark.parametrize("quantiles", [False, True])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize("dueling", ["none", "mean"])
def test_autocast_leaves_values_in_full_precision(dueling: str, sigma: float, quantiles: bool) -> None:
    settings = NetSettings("minatar", num_cells=[128], dueling=dueling, noise_sigma=sigma)
    network = _around_50(settings, ASTERIX, quantiles=quantiles)
    inputs = (torch.rand(32, 4, 10, 10).round(), *[torch.rand(32, 5)] * quantiles)
    exact, found = (_passed(network, *inputs, lowered=lowered) for lowered in (False, True))
    assert found.dtype == exact.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.02  # features are lowered, the sums over them are not
    found.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in network.parameters())


@pytest.mark.parametrize("rows", [2, 80])  # from 64 on, layers after the fractions and norms run one by one
@pytest.mark.parametrize("settings", [{}, {"layer_norm": "image"}, {"quantiles": True}], ids=str)
def test_stacked_networks_leave_values_in_full_precision(settings: dict[str, Any], rows: int) -> None:
    quantiles = bool(settings.get("quantiles"))
    named = NetSettings(num_cells=[64, 64], layer_norm=settings.get("layer_norm", "none"))
    networks = [_around_50(named, CARTPOLE, quantiles=quantiles) for _ in range(2)]
    inputs = (torch.randn(2, rows, 4), *[torch.rand(2, rows, 5)] * quantiles)
    stacked, parameters = deepcopy(networks[0]), dict[str, torch.Tensor]()
    for name, _ in networks[0].named_parameters():
        parameters[name] = torch.stack([network.get_parameter(name) for network in networks])
    stack_layers(stacked)
    run = stacked if quantiles else layer_by_layer(stacked)
    for name, parameter in parameters.items():
        stacked.get_submodule(name.rpartition(".")[0])._parameters[name.rpartition(".")[2]] = parameter  # type: ignore[assignment]
    found = _passed(run, *inputs, lowered=True)
    exact = torch.stack([network(*(each[k] for each in inputs)) for k, network in enumerate(networks)])
    assert found.dtype == torch.float32 and 0 < (found - exact).abs().max() < 0.02


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
    kinds = [nn.Conv2d, ChannelNorm, nn.ReLU, nn.Linear, nn.LayerNorm, nn.ReLU, OutputLinear]
    assert [type(layer) for layer in layers] == kinds
    assert {layer.eps for layer in layers if isinstance(layer, nn.LayerNorm)} == {1e-6}


# -- torsos ---------------------------------------------------------------------------------------------------------


def pixels(*batch, channels=4):
    shape = (*batch, channels, 84, 84)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_nature_cnn_is_the_written_out_network():
    """Pixels are unchanged in every memory layout; floating-point pixels are not scaled."""
    torso, images = NatureCNN(), pixels(3)
    layers = [layer for layer in torso.convolutions if isinstance(layer, nn.Conv2d)]
    results = []
    for written_out in (False, True):
        torso.zero_grad()
        hidden = images.float() / 255
        for layer, stride in zip(layers, (4, 2, 1), strict=True) if written_out else ():
            hidden = F.conv2d(hidden, layer.weight, layer.bias, stride=stride).relu()
        features = hidden.flatten(1) if written_out else torso(images)
        features.square().sum().backward()
        results.append([features, *(parameter.grad.clone() for parameter in torso.parameters())])
    torch.testing.assert_close(*results)
    assert torso.out_features == 3136 and torso(images).is_contiguous() and torch.equal(images, pixels(3))
    assert [tuple(layer.weight.shape) for layer in layers] == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3)]
    torch.testing.assert_close(torso(images.float() / 255), torso(images))
    assert torso.double()(images).dtype == torch.float64


def test_minatar_images_are_taken_as_they_are():
    torso, images = MinAtarCNN(4), torch.rand(3, 4, 10, 10) < 0.3
    convolution = torso.convolutions[0]
    expected = F.conv2d(images.float(), convolution.weight, convolution.bias).relu().flatten(1)
    assert torso.out_features == 1024 and convolution.weight.shape == (16, 4, 3, 3)
    for dtype in (torch.bool, torch.uint8, torch.float32):
        torch.testing.assert_close(torso(images.to(dtype)), expected)


def test_impala_is_the_written_out_network():
    """And the residual convolutions have a largest singular value of 1 once the power iteration has converged."""
    torso, images = ImpalaCNN(width=1), pixels(2)
    for _ in range(200):
        torso(images[:1])
    convolutions = [layer for layer in torso.convolutions.modules() if isinstance(layer, nn.Conv2d)]
    for layer in (layer for layer in convolutions if hasattr(layer, "parametrizations")):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    torso.eval()
    x, rest = images.float() / 255, iter(convolutions)
    for _ in range(3):
        x = F.max_pool2d(F.conv2d(x, (layer := next(rest)).weight, layer.bias, padding=1), 3, 2, 1)
        for _ in range(2):
            y = x
            for layer in (next(rest), next(rest)):
                y = F.conv2d(y.relu(), layer.weight, layer.bias, padding=1)
            x = x + y
    expected = F.adaptive_max_pool2d(x.relu(), 6).flatten(1)
    torch.testing.assert_close(torso(images), expected)
    assert torso.out_features == 32 * 36 and ImpalaCNN(width=1, pooled=None, spectral_norm=False).out_features == 3872


@pytest.mark.parametrize("dims", [(0, None), (0, 0)])
def test_several_networks_at_once(dims):
    torsos = [NatureCNN() for _ in range(2)]
    parameters, _ = torch.func.stack_module_state(torsos)
    images = pixels(2, 3) if dims[1] == 0 else pixels(3)
    together = torch.vmap(lambda held, seen: torch.func.functional_call(torsos[0], held, (seen,)), dims)
    apart = [torso(seen) for torso, seen in zip(torsos, images if dims[1] == 0 else (images, images), strict=True)]
    torch.testing.assert_close(together(parameters, images), torch.stack(apart), atol=1e-5, rtol=1e-4)


def test_same_padding_of_minatar_keeps_the_border():
    torso, image = MinAtarCNN(4, padding="same"), torch.rand(2, 4, 10, 10) < 0.3
    layer = torso.convolutions[0]
    expected = F.conv2d(image.float(), layer.weight, layer.bias, padding=1).relu().flatten(1)
    torch.testing.assert_close(torso(image), expected)
    linear = {"name": "minatar", "num_cells": [], "padding": "same"}
    assert quantile_network(NetSettings(**linear), ASTERIX)(image, torch.rand(2, 3)).shape == (2, 3, 6)


def test_same_padding_is_tensorflows():
    # With all-ones kernels a layer's output counts the pixels under the kernel, which shows where
    # the zeros were added: computed by hand, 2 and 2 for 84, 1 and 2 for 21, 1 and 1 for 11.
    torso = NatureCNN(in_channels=1, padding="same")
    pads = [layer for layer in torso.convolutions if isinstance(layer, nn.ZeroPad2d)]
    found = []
    for pad, size, kernel, stride in zip(pads, (84, 21, 11), (8, 4, 3), (4, 2, 1), strict=True):
        count = F.conv2d(pad(torch.ones(1, 1, size, size)), torch.ones(1, 1, kernel, kernel), stride=stride)
        found.append((count.shape[-1], count[0, 0, 0, 0].item(), count[0, 0, -1, -1].item()))
    assert found == [(21, 36, 36), (11, 9, 4), (11, 4, 4)] and torso.out_features == 7744


SAME_PADDING, MINATAR_IMAGES = (NatureCNN(padding="same"), pixels(6)), (MinAtarCNN(5), torch.rand(6, 5, 10, 10) < 0.3)


@pytest.mark.parametrize(("torso", "images"), [(NatureCNN(), pixels(6)), SAME_PADDING, MINATAR_IMAGES])
def test_leading_dimensions(torso, images):
    flat, shape = torso(images), images.shape[1:]
    torch.testing.assert_close(torso(images[0]), flat[0])
    torch.testing.assert_close(torso(images.reshape(2, 3, *shape)), flat.reshape(2, 3, -1))
    assert torso(images[:0].reshape(4, 0, *shape)).shape == (4, 0, torso.out_features)


@pytest.mark.parametrize(("torso", "images"), [SAME_PADDING, MINATAR_IMAGES])
def test_no_graph_break(torso, images):
    compiled = torch.compile(torso, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images[:2]), torso(images[:2]))


def test_channels_are_normalized_at_each_place():
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64) * 7 + 2
    norm = ChannelNorm(5, eps=1e-6).double()
    norm.weight.data.copy_(torch.arange(5.0))
    norm.bias.data.fill_(0.5)
    centered = x - x.mean(1, keepdim=True)
    expected = centered / (x.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected * torch.arange(5.0).reshape(-1, 1, 1) + 0.5)


# -- how weights begin ----------------------------------------------------------------------------------------------


# Largest weight and standard deviation of a layer that is not the last.
UNIFORM, CUT, DEEP, LAST = math.sqrt(3), 2 / 0.8796, (64 * 9, 64 * 9), (400, 300)


@pytest.mark.parametrize(
    ("name", "largest", "deviation"),
    [
        ("glorot_uniform", UNIFORM, lambda fans, last: math.sqrt(2 / sum(fans))),
        ("variance_scaling", UNIFORM, lambda fans, last: math.sqrt(1 / math.sqrt(3) / fans[0])),
        ("lecun_normal", CUT, lambda fans, last: math.sqrt(1 / fans[0])),
        ("he_normal", CUT, lambda fans, last: math.sqrt((1 if last else 2) / fans[0])),
    ],
)
def test_how_weights_begin(name: str, largest: float, deviation: Any) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(400, 300))
    initialize_weights(network, name)
    for layer, fans, last in zip(network, (DEEP, LAST), (False, True), strict=True):
        expected = deviation(fans, last)
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert layer.weight.abs().max().item() == pytest.approx(largest * expected, rel=0.01)
        assert not layer.bias.any()


def test_weights_under_a_spectral_norm_begin_so_too() -> None:
    """And not a copy of them, which is what ``layer.weight`` is there."""
    torso = initialize_weights(ImpalaCNN(width=1), "glorot_uniform")
    originals = [weight for name, weight in torso.named_parameters() if name.endswith("weight.original")]
    assert len(originals) == 12
    for weight in originals:
        bound = math.sqrt(6 / (2 * 9 * len(weight)))
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)


def test_orthogonal_weights_and_pytorchs_own() -> None:
    weight = initialize_weights(nn.Linear(400, 300), "orthogonal").weight
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(300), atol=1e-4, rtol=0)
    torch.manual_seed(3)
    expected = nn.Conv2d(7, 16, 3)
    torch.manual_seed(3)
    found = MinAtarCNN(7).convolutions[0]
    assert torch.equal(found.weight, expected.weight) and torch.equal(found.bias, expected.bias)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: NatureCNN(padding="full"), "padding must be 'valid' or 'same', got 'full'"),
        (lambda: MinAtarCNN(4, padding="full"), "padding must be 'valid' or 'same', got 'full'"),
        (lambda: MinAtarCNN(4, initialization="he"), "initialization must be .* got 'he'"),
        (lambda: NatureCNN()(torch.zeros(2, 84, 84, 4)), r"images of shape \[\*B, 4, 84, 84\], got \[2, 84, 84, 4\]"),
        (lambda: NetSettings("foo").validate(), "NetSettings.name must be one of mlp, .* got 'foo'"),
        (lambda: NetSettings(initialization="he").validate(), "NetSettings.initialization must be .* got 'he'"),
        (lambda: NetSettings(quantile_initialization="he").validate(), "quantile_initialization must be .* got 'he'"),
        (lambda: MinAtarCNN(4)(torch.zeros(10, 10)), r"shape \[\*B, 4, 10, 10\], got \[10, 10\]"),
    ],
)
def test_bad_input_ends_in_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
