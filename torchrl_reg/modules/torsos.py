"""Convolutional torsos for Atari and MinAtar images, their beginnings and normalization; any leading batch dimensions.

For vectors use ``torchrl.modules.MLP``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Initialization = Literal["default", "glorot_uniform", "variance_scaling", "orthogonal", "lecun_normal", "he_normal"]
Padding = Literal["valid", "same"]


#: Standard deviation of a standard normal variable cut off at -2 and 2.
_CUT_DEVIATION = 0.87962566103423978


Network = TypeVar("Network", bound=nn.Module)


def initialize_weights(module: Network, initialization: Initialization | str) -> Network:
    r"""Draws the weights of every Conv2d and Linear in ``module`` anew, in order, with zero biases, and returns it.

    Uniform on ``[-b, b]``: ``"glorot_uniform"``: :math:`b = \sqrt{6 / (fan_{in} + fan_{out})}` (TensorFlow's default,
    hence Dopamine's DQN and M-DQN); ``"variance_scaling"``: :math:`b = \sqrt{3 s / fan_{in}}` with
    :math:`s = 1/\sqrt 3` (Dopamine's C51, Rainbow and IQN).
    ``"orthogonal"``: of gain :math:`\sqrt 2` in all layers, the last included (CleanRL's PQN). Normal, cut off at two
    standard deviations and rescaled: ``"lecun_normal"`` of variance :math:`1 / fan_{in}` (flax's default),
    ``"he_normal"`` of :math:`2 / fan_{in}`, but for the last linear layer, which is ``lecun_normal`` (Gallici et al.
    2024 on images). ``"default"`` leaves PyTorch's own.

    Raises:
        ValueError: another name.
    """
    if initialization not in get_args(Initialization):
        *others, last = map(repr, get_args(Initialization))
        raise ValueError(f"initialization must be {', '.join(others)} or {last}, got {initialization!r}.")
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers if initialization != "default" else ():
        own = dict(layer.named_parameters())  # under a spectral norm `layer.weight` is a copy
        weight = own["weight"] if "weight" in own else own["parametrizations.weight.original"]
        _draw(weight, initialization, layer is layers[-1])
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


def _draw(weight: Tensor, initialization: str, last: bool) -> None:
    fan_in = weight[0].numel()
    if initialization == "glorot_uniform":
        nn.init.xavier_uniform_(weight)
    elif initialization == "variance_scaling":
        bound = math.sqrt(3 / math.sqrt(3) / fan_in)
        nn.init.uniform_(weight, -bound, bound)
    elif initialization == "orthogonal":
        nn.init.orthogonal_(weight, math.sqrt(2))
    else:
        scale = 2 if initialization == "he_normal" and not last else 1
        deviation = math.sqrt(scale / fan_in) / _CUT_DEVIATION
        nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


#: Makes the normalization of features of a shape, ``[F]`` or ``[C, H, W]``; the empty list is none.
Normalization = Callable[[Sequence[int]], list[nn.Module]]


class ChannelNorm(nn.LayerNorm):
    """Normalizes the channels at each place of an image, ``[*B, C, H, W]``, with a scale and a shift per channel.

    It is what a layer norm over the last axis does in libraries whose images end in channels (flax), and another
    function than one over the whole image, torch's ``LayerNorm([C, H, W])``.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.movedim(-3, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.movedim(-1, -3)


def normalization(kind: str, eps: float) -> Normalization:
    """``"none"``, ``"channels"`` (per place of an image) or ``"image"`` (over all of it); vectors are the same to both.

    Raises:
        ValueError: another kind.
    """
    if kind not in ("none", "channels", "image"):
        raise ValueError(f"layer_norm must be 'none', 'channels' or 'image', got {kind!r}.")

    def make(shape: Sequence[int]) -> list[nn.Module]:
        if kind == "none":
            return []
        if kind == "channels" and len(shape) == 3:
            return [ChannelNorm(shape[0], eps=eps)]
        return [nn.LayerNorm(list(shape), eps=eps)]

    return make


def no_normalization(shape: Sequence[int]) -> list[nn.Module]:
    """None."""
    return []


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. (2015): 32@8x8/4, 64@4x4/2, 64@3x3/1, ReLU, flattened.

    uint8 images are divided by 255; floating-point images are taken as they are.

    Source: Mnih et al. 2015 (DQN).

    Args:
        in_channels: stacked frames C.
        padding: ``"valid"`` gives 3136 features; ``"same"`` pads as TensorFlow does and gives 7744
            (Dopamine's TensorFlow agents, the published M-DQN and M-IQN included).
        initialization: see :func:`initialize_weights`.
        normalization: after each convolution, see :func:`~torchrl_reg.modules.torsos.normalization`.

    Shape: ``[*B, C, 84, 84]`` -> ``[*B, out_features]``.

    Raises:
        ValueError: an unknown ``padding`` or ``initialization``, or images of another shape.

    >>> torso = NatureCNN(padding="same")
    >>> torso(torch.zeros(2, 5, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2, 5, 7744])
    """

    def __init__(
        self,
        in_channels: int = 4,
        *,
        padding: Padding = "valid",
        initialization: Initialization = "default",
        normalization: Normalization = no_normalization,
    ) -> None:
        super().__init__()
        if padding not in ("valid", "same"):
            raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}.")
        self._image_shape = (in_channels, 84, 84)
        layers: list[nn.Module] = []
        size = 84
        for channels_in, channels, kernel, stride in ((in_channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
            if padding == "same":
                # ceil(size / stride) outputs; TensorFlow puts the odd zero below and right.
                total = (math.ceil(size / stride) - 1) * stride + kernel - size
                before, after = total // 2, total - total // 2
                layers.append(nn.ZeroPad2d((before, after, before, after)))
                size += total
            size = (size - kernel) // stride + 1
            convolution = nn.Conv2d(channels_in, channels, kernel, stride)
            layers += [convolution, *normalization([channels, size, size]), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.out_features = 64 * size * size
        initialize_weights(self, initialization)

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 84, 84]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        if observation.dtype == torch.uint8:
            images = images.div_(255)  # a copy of the observation since _images
        if torch.is_grad_enabled() and images.device.type == "cpu":
            # Channels last, in a way that vmap knows: the first layer's gradient then takes half the time.
            images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


class MinAtarCNN(nn.Module):
    """The convolution of Young and Tian (2019): 16@3x3/1, ReLU, flattened (1024 features).

    Images are zeros and ones of any type and are not scaled, except by a ``divisor``.

    Source: Young and Tian 2019 (MinAtar).

    Args:
        in_channels: channels C of the game.
        initialization: see :func:`initialize_weights`.
        normalization: after the convolution, see :func:`~torchrl_reg.modules.torsos.normalization`.
        divisor: of the images (Gallici et al. 2024 divide by 255).

    Shape: ``[*B, C, 10, 10]`` -> ``[*B, out_features]``.

    Raises:
        ValueError: an unknown ``initialization``, or images of another shape.

    >>> MinAtarCNN(in_channels=7)(torch.ones(3, 7, 10, 10, dtype=torch.bool)).shape
    torch.Size([3, 1024])
    """

    def __init__(
        self,
        in_channels: int,
        *,
        initialization: Initialization = "default",
        normalization: Normalization = no_normalization,
        divisor: float = 1.0,
    ) -> None:
        super().__init__()
        self._image_shape, self._divisor = (in_channels, 10, 10), divisor
        self.convolutions = nn.Sequential(nn.Conv2d(in_channels, 16, 3), *normalization([16, 8, 8]), nn.ReLU())
        self.out_features = 16 * 8 * 8
        initialize_weights(self, initialization)

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 10, 10]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        if self._divisor != 1:
            images = images / self._divisor
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


class ImpalaCNN(nn.Module):
    """The residual convolutions of Espeholt et al. (2018), wider, spectrally normalized, and pooled to 6x6.

    Three stages of channels ``16, 32, 32`` times ``width``: a 3x3 convolution, max pooling 3/2, then two residual units
    ``x + conv(relu(conv(relu(x))))``; ReLU, adaptive max pooling, flattened. uint8 images are divided by 255.

    Args:
        in_channels: stacked frames C.
        width: factor of the channels, 2 in Beyond The Rainbow, 1 in IMPALA.
        spectral_norm: divide the weights of the residual convolutions by their largest singular value, by one step of
            power iteration in each pass in train mode; others are left.
        pooled: side of the pooled image; None for no pooling (11x11 remain).

    Shape: ``[*B, C, 84, 84]`` -> ``[*B, out_features]``, 2304 by default.

    Raises:
        ValueError: images of another shape.

    Source: Espeholt et al., "IMPALA", ICML 2018; Clark et al., "Beyond The Rainbow", ICML 2025.

    >>> ImpalaCNN()(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2, 2304])
    """

    def __init__(
        self, in_channels: int = 4, *, width: int = 2, spectral_norm: bool = True, pooled: int | None = 6
    ) -> None:
        super().__init__()
        self._image_shape = (in_channels, 84, 84)
        layers: list[nn.Module] = []
        channels_in = in_channels
        for channels in (16 * width, 32 * width, 32 * width):
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [ResidualUnit(channels, spectral_norm=spectral_norm) for _ in range(2)]
            channels_in = channels
        pooling = [] if pooled is None else [nn.AdaptiveMaxPool2d(pooled)]
        self.convolutions = nn.Sequential(*layers, nn.ReLU(), *pooling)
        self.out_features = channels_in * (11 if pooled is None else pooled) ** 2

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 84, 84]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        if observation.dtype == torch.uint8:
            images = images.div_(255)  # a copy of the observation since _images
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


class ResidualUnit(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` with 3x3 convolutions of images ``[B, channels, H, W]``."""

    def __init__(self, channels: int, *, spectral_norm: bool) -> None:
        super().__init__()
        normalized = nn.utils.parametrizations.spectral_norm if spectral_norm else lambda layer: layer
        first, second = (normalized(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))
        self.residual = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


def _images(observation: Tensor, shape: tuple[int, int, int], convolutions: nn.Sequential) -> Tensor:
    """The images as one batch ``[prod(B), C, H, W]``, integers in the type of the weights."""
    if observation.shape[-3:] != shape:
        raise ValueError(
            f"observation must be images of shape [*B, {', '.join(map(str, shape))}], got {list(observation.shape)}."
        )
    if not observation.is_floating_point():
        # Not parameters(): TorchRL's losses put target parameters in as plain tensors, and it would list none.
        weight = next(layer.weight for layer in convolutions if isinstance(layer, nn.Conv2d))
        observation = observation.to(weight.dtype)
    return observation.reshape(-1, *shape)
