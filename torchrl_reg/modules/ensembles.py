"""Several networks at once: ensembles of critics, and networks of several seeds stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import ValueOperator


class CriticEnsemble(TensorDictModuleBase):
    """The values of all critics, each with its own parameters; writes ``"action_values"`` ``[*B, C]``.

    Args:
        critics: TensorDict modules that write Q(s, a) ``[*B, 1]`` in reward units, such as ``ValueOperator(net,
            in_keys=["observation", "action"])``; their last out-key counts.

    Raises:
        ValueError: no critic, or one that is no TensorDict module.

    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> critics = [ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"]) for _ in "ab"]
    >>> data = TensorDict({"observation": torch.randn(8, 4), "action": torch.randn(8, 2)}, [8])
    >>> CriticEnsemble(critics).values(data).shape
    torch.Size([2, 8])
    """

    def __init__(self, critics: Sequence[Any]) -> None:
        super().__init__()
        for critic in critics:
            if not isinstance(critic, TensorDictModuleBase):
                raise ValueError(
                    "qvalue_network must be TensorDict modules that write Q(s, a) [*B, 1], such as ValueOperators, got "
                    f"{type(critic).__name__}."
                )
        if not critics:
            raise ValueError("qvalue_network must be one critic or a list of them, got an empty list.")
        self.critics = nn.ModuleList(critics)
        self.in_keys: list[NestedKey] = list(dict.fromkeys(key for critic in critics for key in critic.in_keys))
        self.out_keys = ["action_values"]

    def values(self, tensordict: TensorDictBase) -> Tensor:
        """Q(s, a) of every critic ``[C, *B]``; ``tensordict`` is not changed."""
        values = []
        for critic in self.critics:
            out: Any = critic(tensordict.select(*critic.in_keys))  # type: ignore[misc]
            values.append(out.get(critic.out_keys[-1]).squeeze(-1))  # type: ignore[index]
        return torch.stack(values)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = self.values(tensordict)
        return tensordict.set("action_values", values.movedim(0, -1))


class AveragedCritics(TensorDictModuleBase):
    r"""The critics of several tasks as one of their mean reward: :math:`\frac1n \sum_i \min_c Q_{i, c}`.

    Writes ``"state_action_value"`` ``[*B, 1]``, in reward units. How far the softmax of an average of soft-optimal
    values is from the optimum is bounded in :func:`torchrl_reg.tabular.soft_composition`.

    Source: Haarnoja et al. 2018 (Composable deep reinforcement learning for robotic manipulation).

    Args:
        critics: of each task, as of :class:`CriticEnsemble`.

    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> critics = [ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"]) for _ in "abc"]
    >>> data = TensorDict({"observation": torch.randn(8, 4), "action": torch.randn(8, 2)}, [8])
    >>> AveragedCritics([critics[:2], critics[2:]])(data)["state_action_value"].shape
    torch.Size([8, 1])
    """

    def __init__(self, critics: Sequence[Sequence[Any]]) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(CriticEnsemble(each) for each in critics)
        self.in_keys = list(dict.fromkeys(key for task in self.tasks for key in task.in_keys))  # type: ignore[union-attr]
        self.out_keys = ["state_action_value"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        values = [task.values(tensordict).amin(0) for task in self.tasks]  # type: ignore[operator]
        return tensordict.set("state_action_value", torch.stack(values).mean(0).unsqueeze(-1))


def is_plain(module: Any) -> bool:
    """True if the TensorDict module only calls its network on the in-keys, in order.

    Such a module can be skipped, which saves 160 us a call.
    """
    if type(module) not in (TensorDictModule, ValueOperator) or module._forward_hooks or module._forward_pre_hooks:
        return False
    return not getattr(module, "_kwargs", None) and getattr(module, "method", None) in (None, "forward")


#: Torch's layers without parameters that act on each row alone, for any number of leading dimensions; a custom layer
#: declares this by an attribute ``row_by_row = True``.
ROW_BY_ROW = (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Softplus, nn.Identity)


class StackedLinear(nn.Linear):
    """``S`` linear layers: weights ``[S, out, in]``, biases ``[S, out]``; ``[S, *B, in]`` -> ``[S, *B, out]``."""

    def forward(self, x: Tensor) -> Tensor:
        # Weights first, so that their gradients have the weights' layout and autograd does not copy them.
        columns, weight = x.reshape(len(x), -1, x.shape[-1]).mT, self.weight
        if self.bias is None:
            out = torch.bmm(weight, columns)
        else:
            out = torch.baddbmm(self.bias.unsqueeze(2), weight, columns)
        return out.mT.reshape(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def of_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer of one network, ``[*B, in]`` -> ``[*B, out]``."""
        return F.linear(x, weight, bias)


class FullPrecision(nn.Linear):
    """A layer in the dtype of its parameters under autocast, too.

    For layers whose outputs are values: bfloat16 has 8 bits, so that Q-values of 50 would be multiples of .25, while
    action gaps and temperatures are far smaller.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _in_full_precision(super().forward, x, self.weight.dtype)


def _in_full_precision(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    if not torch.is_autocast_enabled(x.device.type):
        return function(x)
    with torch.autocast(x.device.type, enabled=False):
        return function(x.to(dtype))


class StackedOutputLinear(FullPrecision, StackedLinear):
    """As :class:`StackedLinear`, in full precision."""

    @staticmethod
    def of_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _in_full_precision(partial(F.linear, weight=weight, bias=bias), x, weight.dtype)


class OutputLinear(FullPrecision):
    """A linear layer whose outputs are values: in float32 where autocast lowers the layers before it.

    >>> layer, features = OutputLinear(8, 2), torch.randn(3, 8)
    >>> with torch.autocast("cpu", torch.bfloat16):
    ...     layer(features.bfloat16()).dtype
    torch.float32
    """

    stacked_form = StackedOutputLinear


class StackedConv2d(nn.Conv2d):
    """``S`` convolutions: weights ``[S, out, in, k, k]``; images ``[S * B, in, h, w]``, network after network."""

    def forward(self, x: Tensor) -> Tensor:
        count, (channels, height, width) = len(self.weight), x.shape[1:]
        side_by_side = x.reshape(count, -1, channels, height, width).transpose(0, 1).flatten(1, 2)
        bias = None if self.bias is None else self.bias.flatten()
        weight = self.weight.flatten(0, 1)
        out = F.conv2d(side_by_side, weight, bias, self.stride, self.padding, self.dilation, groups=count)
        return out.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)


class StackedLayerNorm(nn.LayerNorm):
    """``S`` layer norms over vectors: scales and shifts ``[S, F]``; ``[S, *B, F]`` -> ``[S, *B, F]``."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (len(x), *[1] * (x.ndim - 2), -1)
        plain = F.layer_norm(x, self.normalized_shape, eps=self.eps)
        return torch.addcmul(self.bias.view(shape), plain, self.weight.view(shape))


#: From this number of rows on layer norms are faster network by network, because of their gradients' sums.
MANY_ROWS = 64


def unstack_layers(layers: Sequence[nn.Module]) -> list[Callable[[Tensor], Tensor]]:
    """Stacked linear, layer norm and row-by-row ``layers`` as one function for each network, faster for many rows.

    Raises:
        ValueError: a layer of another kind.
    """
    parts: list[tuple[Any, Any, Any]] = []
    for layer in layers:
        if isinstance(layer, StackedLinear | StackedLayerNorm):
            weights = layer.weight.unbind()
            parts.append((layer, weights, [None] * len(weights) if layer.bias is None else layer.bias.unbind()))
        elif layer._parameters or layer._modules:
            raise ValueError(f"layers must be linear, layer norms or without parameters, got {layer}.")
        else:
            parts.append((layer, None, None))

    def run(number: int, x: Tensor) -> Tensor:
        for layer, weights, biases in parts:
            if weights is None:  # in place: allocating memory costs more than the ReLU
                x = x.relu_() if type(layer) is nn.ReLU and not torch.compiler.is_compiling() else layer(x)
            elif isinstance(layer, StackedLayerNorm):
                x = F.layer_norm(x, layer.normalized_shape, weights[number], biases[number], layer.eps)
            else:
                x = layer.of_one(x, weights[number], biases[number])
        return x

    return [partial(run, number) for number in range(max(len(weights) for _, weights, _ in parts if weights))]


def stack_as_views(singles: Sequence[Tensor]) -> Tensor:
    """``singles`` stacked along a first dimension; each becomes a view of the result."""
    together = torch.stack([single.detach() for single in singles])
    for single, view in zip(singles, together.unbind(), strict=True):
        single.data = view
    return together


def pointers(tensors: Sequence[Tensor]) -> list[int]:
    """Where the tensors lie: assigning to a parameter's ``data`` moves it, and it stays the same parameter."""
    return [tensor.data_ptr() for tensor in tensors]


def stack_layers(network: nn.Module) -> None:
    """Changes the layers of ``network`` in place into stacked ones, ready for parameters ``[S, ...]``.

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
        elif "stacked_form" in vars(type(module)):  # not inherited: a subclass may compute something else
            module.__class__ = type(module).stacked_form
        elif module._parameters or not (
            module._modules or getattr(module, "row_by_row", isinstance(module, ROW_BY_ROW))
        ):
            raise ValueError(f"network must have linear, convolutional and row-by-row layers, got {name}: {module}.")
