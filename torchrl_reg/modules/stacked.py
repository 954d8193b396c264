"""Networks of one shape as one network: their layers run side by side, as one batched product each.

Shapes: ``S`` networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Torch's layers that learn nothing and treat every row alike, however many dimensions come first; a layer of one's own
#: says so by an attribute ``row_by_row = True``.
ROW_BY_ROW = (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Identity)


class StackedLinear(nn.Linear):
    """``S`` linear layers: weights ``[S, out, in]``, biases ``[S, out]``; ``[S, *B, in]`` -> ``[S, *B, out]``."""

    def forward(self, x: Tensor) -> Tensor:
        # Weights first: their gradients then come in their own layout, and autograd need not copy them.
        columns, weight = x.reshape(len(x), -1, x.shape[-1]).mT, self.weight
        if self.bias is None:
            out = torch.bmm(weight, columns)
        else:
            out = torch.baddbmm(self.bias.unsqueeze(2), weight, columns)
        return out.mT.reshape(*x.shape[:-1], weight.shape[1])


class StackedConv2d(nn.Conv2d):
    """``S`` convolutions: weights ``[S, out, in, k, k]``; images ``[S * B, in, h, w]``, network after network."""

    def forward(self, x: Tensor) -> Tensor:
        count, (channels, height, width) = len(self.weight), x.shape[1:]
        side_by_side = x.reshape(count, -1, channels, height, width).transpose(0, 1).flatten(1, 2)
        bias = None if self.bias is None else self.bias.flatten()
        weight = self.weight.flatten(0, 1)
        out = F.conv2d(side_by_side, weight, bias, self.stride, self.padding, self.dilation, groups=count)  # type: ignore[arg-type]
        return out.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)


class StackedLayerNorm(nn.LayerNorm):
    """``S`` layer norms over vectors: scales and shifts ``[S, F]``; ``[S, *B, F]`` -> ``[S, *B, F]``."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(x), *[1] * (x.ndim - 2), -1)
        plain = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias.view(shape), plain, self.weight.view(shape))


#: Rows of each network from which on layer norms are faster one network after the other: their gradients' sums.
MANY_ROWS = 64


def of_each_network(layers: Sequence[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """Stacked linear, layer norm and row-by-row ``layers``, one function for each network: faster where rows are many.

    Raises:
        ValueError: a layer of another kind.
    """
    held: list[tuple[nn.Module, Any, Any]] = []
    for layer in layers:
        if isinstance(layer, StackedLinear | StackedLayerNorm):
            weights = layer.weight.unbind()
            held.append((layer, weights, [None] * len(weights) if layer.bias is None else layer.bias.unbind()))
        elif layer._parameters or layer._modules:
            raise ValueError(f"layers must be linear, layer norms or without parameters, got {layer}.")
        else:
            held.append((layer, None, None))

    def run(number: int, x: Tensor) -> Tensor:
        for layer, weights, biases in held:
            if weights is None:  # in the memory of the layer before, because fresh memory costs more
                x = x.relu_() if type(layer) is nn.ReLU and not torch.compiler.is_compiling() else layer(x)
            elif isinstance(layer, StackedLayerNorm):
                x = F.layer_norm(x, layer.normalized_shape, weights[number], biases[number], layer.eps)
            else:
                x = F.linear(x, weights[number], biases[number])
        return x

    return [partial(run, number) for number in range(max(len(weights) for _, weights, _ in held if weights))]


def stack_as_views(singles: Sequence[Tensor]) -> Tensor:
    """``singles`` stacked along a first dimension, each made a view of the result."""
    together = torch.stack([single.detach() for single in singles])
    for single, view in zip(singles, together.unbind(), strict=True):
        single.data = view
    return together


def stack_layers(network: nn.Module) -> None:
    """Turns the layers of ``network`` in place into stacked ones; parameters ``[S, ...]`` are then put into them.

    Raises:
        ValueError: a layer that has no stacked form.
    """
    for name, module in network.named_modules():
        if type(module) is nn.Linear:
            module.__class__ = StackedLinear
        elif type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
            module.__class__ = StackedConv2d
        elif type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.bias is not None:
            module.__class__ = StackedLayerNorm
        elif "stacked_form" in vars(type(module)):  # of its own: a subclass may do something else
            module.__class__ = type(module).stacked_form
        elif module._parameters or not (
            module._modules or getattr(module, "row_by_row", isinstance(module, ROW_BY_ROW))
        ):
            raise ValueError(f"network must have linear, convolutional and row-by-row layers, got {name}: {module}.")
