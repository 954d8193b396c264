"""Convolutional torsos for Atari and MinAtar images; any number of leading batch dimensions.

For vectors use ``torchrl.modules.MLP``.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Initialization = Literal["default", "glorot_uniform", "variance_scaling"]
Padding = Literal["valid", "same"]


Network = TypeVar("Network", bound=nn.Module)


def initialize_weights(module: Network, initialization: Initialization | str) -> Network:
    r"""Draws the weights of every Conv2d and Linear in ``module`` anew, uniform on ``[-b, b]``, and returns it.

    ``"glorot_uniform"``: :math:`b = \sqrt{6 / (fan_{in} + fan_{out})}` (TensorFlow's default, hence
    Dopamine's DQN and M-DQN); ``"variance_scaling"``: :math:`b = \sqrt{3 s / fan_{in}}` with
    :math:`s = 1/\sqrt 3` (Dopamine's C51, Rainbow and IQN), both with zero biases; ``"default"``
    leaves PyTorch's own.

    Raises:
        ValueError: another name.
    """
    if initialization not in ("default", "glorot_uniform", "variance_scaling"):
        raise ValueError(
            f"initialization must be 'default', 'glorot_uniform' or 'variance_scaling', got {initialization!r}."
        )
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers if initialization != "default" else ():
        if initialization == "glorot_uniform":
            nn.init.xavier_uniform_(layer.weight)
        else:
            bound = math.sqrt(3 / math.sqrt(3) / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. (2015): 32@8x8/4, 64@4x4/2, 64@3x3/1, ReLU, flattened.

    uint8 images are divided by 255; floating-point images are taken as they are.

    Source: Mnih et al. 2015 (DQN).

    Args:
        in_channels: stacked frames C.
        padding: ``"valid"`` gives 3136 features; ``"same"`` pads as TensorFlow does and gives 7744
            (Dopamine's TensorFlow agents, the published M-DQN and M-IQN included).
        initialization: see :func:`initialize_weights`.

    Shape: ``[*B, C, 84, 84]`` -> ``[*B, out_features]``.

    Raises:
        ValueError: an unknown ``padding`` or ``initialization``, or images of another shape.

    >>> torso = NatureCNN(padding="same")
    >>> torso(torch.zeros(2, 5, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2, 5, 7744])
    """

    def __init__(
        self, in_channels: int = 4, *, padding: Padding = "valid", initialization: Initialization = "default"
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
            layers += [nn.Conv2d(channels_in, channels, kernel, stride), nn.ReLU()]
            size = (size - kernel) // stride + 1
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

    Images are zeros and ones of any type and are not scaled.

    Source: Young and Tian 2019 (MinAtar).

    Args:
        in_channels: channels C of the game.
        initialization: see :func:`initialize_weights`.

    Shape: ``[*B, C, 10, 10]`` -> ``[*B, out_features]``.

    Raises:
        ValueError: an unknown ``initialization``, or images of another shape.

    >>> MinAtarCNN(in_channels=7)(torch.ones(3, 7, 10, 10, dtype=torch.bool)).shape
    torch.Size([3, 1024])
    """

    def __init__(self, in_channels: int, *, initialization: Initialization = "default") -> None:
        super().__init__()
        self._image_shape = (in_channels, 10, 10)
        self.convolutions = nn.Sequential(nn.Conv2d(in_channels, 16, 3), nn.ReLU())
        self.out_features = 16 * 8 * 8
        initialize_weights(self, initialization)

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 10, 10]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


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
