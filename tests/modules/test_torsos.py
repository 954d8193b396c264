from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchrl_reg.modules.torsos import MinAtarCNN, NatureCNN, initialize_weights


def pixels(*batch, channels=4):
    generator = torch.Generator().manual_seed(0)
    shape = (*batch, channels, 84, 84)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def test_nature_cnn_is_the_written_out_network():
    torso, images = NatureCNN(), pixels(3)
    first, second, third = (layer for layer in torso.convolutions if isinstance(layer, nn.Conv2d))
    hidden = F.conv2d(images.float() / 255, first.weight, first.bias, stride=4).relu()
    hidden = F.conv2d(hidden, second.weight, second.bias, stride=2).relu()
    hidden = F.conv2d(hidden, third.weight, third.bias, stride=1).relu()
    torch.testing.assert_close(torso(images), hidden.flatten(1))
    assert torso.out_features == 3136
    assert first.weight.shape == (32, 4, 8, 8) and second.weight.shape == (64, 32, 4, 4)


def test_layout_in_memory_changes_no_gradient_and_no_pixel():
    torso, images = NatureCNN(), pixels(3)
    before = images.clone()
    torso(images).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in torso.parameters()]
    torso.zero_grad()
    hidden = torso.convolutions(images.float() / 255)  # rows of pixels, as stored
    hidden.flatten(1).square().sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in torso.parameters()], gradients)
    assert torch.equal(images, before) and torso(images).is_contiguous()


@pytest.mark.parametrize("dims", [(0, None), (0, 0)])
def test_several_networks_at_once(dims):
    torsos = [NatureCNN() for _ in range(2)]
    parameters, _ = torch.func.stack_module_state(torsos)
    images = pixels(2, 3) if dims[1] == 0 else pixels(3)
    together = torch.vmap(lambda held, seen: torch.func.functional_call(torsos[0], held, (seen,)), dims)
    apart = [torso(seen) for torso, seen in zip(torsos, images if dims[1] == 0 else (images, images), strict=True)]
    torch.testing.assert_close(together(parameters, images), torch.stack(apart), atol=1e-5, rtol=1e-4)


def test_same_padding_is_tensorflows():
    # With all-ones kernels a layer's output counts the pixels under the kernel, which shows where
    # the zeros were put: by hand 2 and 2 beside 84, 1 and 2 beside 21, 1 and 1 beside 11.
    torso = NatureCNN(in_channels=1, padding="same")
    assert torso.out_features == 7744
    pads = [layer for layer in torso.convolutions if isinstance(layer, nn.ZeroPad2d)]
    assert [pad.padding for pad in pads] == [(2,) * 4, (1, 2, 1, 2), (1,) * 4]
    counts = [
        F.conv2d(pad(torch.ones(1, 1, size, size)), torch.ones(1, 1, kernel, kernel), stride=stride)
        for pad, size, kernel, stride in zip(pads, (84, 21, 11), (8, 4, 3), (4, 2, 1), strict=True)
    ]
    assert [count.shape[-1] for count in counts] == [21, 11, 11]
    corners = [(c[0, 0, 0, 0].item(), c[0, 0, -1, -1].item()) for c in counts]
    assert corners == [(36, 36), (9, 4), (4, 4)]


@pytest.mark.parametrize(
    ("torso", "images"),
    [
        (NatureCNN(), pixels(6)),
        (NatureCNN(padding="same"), pixels(6)),
        (MinAtarCNN(5), torch.rand(6, 5, 10, 10) < 0.3),
    ],
)
def test_leading_dimensions(torso, images):
    flat = torso(images)
    shape = images.shape[1:]
    torch.testing.assert_close(torso(images[0]), flat[0])
    torch.testing.assert_close(torso(images.reshape(2, 3, *shape)), flat.reshape(2, 3, -1))
    assert torso(images[:0]).shape == (0, torso.out_features)
    assert torso(images[:0].reshape(4, 0, *shape)).shape == (4, 0, torso.out_features)


def test_only_uint8_pixels_are_scaled():
    torso, images = NatureCNN(), pixels(2)
    torch.testing.assert_close(torso(images), torso(images.float() / 255))
    assert not torch.allclose(torso(images), torso(images.float()))
    double = NatureCNN().double()
    assert double(images).dtype == torch.float64


def test_minatar_images_are_taken_as_they_are():
    torso = MinAtarCNN(4)
    images = torch.rand(3, 4, 10, 10) < 0.3
    convolution = torso.convolutions[0]
    expected = F.conv2d(images.float(), convolution.weight, convolution.bias).relu().flatten(1)
    assert torso.out_features == 1024 and convolution.weight.shape == (16, 4, 3, 3)
    for dtype in (torch.bool, torch.uint8, torch.float32):
        torch.testing.assert_close(torso(images.to(dtype)), expected)


@pytest.mark.parametrize(
    ("initialization", "bound"),
    [
        ("glorot_uniform", lambda fan_in, fan_out: math.sqrt(6 / (fan_in + fan_out))),
        ("variance_scaling", lambda fan_in, fan_out: math.sqrt(math.sqrt(3) / fan_in)),
    ],
)
def test_initialization(initialization, bound):
    torch.manual_seed(0)
    torso = NatureCNN(initialization=initialization)
    convolutions = [layer for layer in torso.convolutions if isinstance(layer, nn.Conv2d)]
    head = nn.Linear(300, 200)
    initialize_weights(head, initialization)
    fans = [(4 * 64, 32 * 64), (32 * 16, 64 * 16), (64 * 9, 64 * 9), (300, 200)]
    for layer, (fan_in, fan_out) in zip([*convolutions, head], fans, strict=True):
        limit = bound(fan_in, fan_out)
        assert limit * 0.99 < layer.weight.abs().max() <= limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
        assert (layer.bias == 0).all()


def test_default_initialization_is_pytorchs():
    torch.manual_seed(3)
    expected = nn.Conv2d(7, 16, 3)
    torch.manual_seed(3)
    torso = MinAtarCNN(7)
    assert torch.equal(torso.convolutions[0].weight, expected.weight)
    assert torch.equal(torso.convolutions[0].bias, expected.bias)


@pytest.mark.parametrize(
    ("torso", "images"), [(NatureCNN(padding="same"), pixels(2, 3)), (MinAtarCNN(4), torch.ones(2, 3, 4, 10, 10))]
)
def test_no_graph_break(torso, images):
    compiled = torch.compile(torso, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), torso(images))


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: NatureCNN(padding="full"), "padding must be 'valid' or 'same', got 'full'"),
        (lambda: MinAtarCNN(4, initialization="he"), "initialization must be .* got 'he'"),
        (
            lambda: NatureCNN()(torch.zeros(2, 84, 84, 4)),
            r"observation must be images of shape \[\*B, 4, 84, 84\], got \[2, 84, 84, 4\]",
        ),
        (lambda: MinAtarCNN(4)(torch.zeros(10, 10)), r"shape \[\*B, 4, 10, 10\], got \[10, 10\]"),
    ],
)
def test_bad_input_ends_in_one_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
