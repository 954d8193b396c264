"""Noisy layers, dueling streams, and networks run without the overhead of ``nn.Module.__call__`` in each layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.modules import MLP

from torchrl_reg.compat import call_hooks, compiled_call, has_global_module_hooks
from torchrl_reg.modules.ensembles import (
    MANY_ROWS,
    FullPrecision,
    StackedLayerNorm,
    StackedLinear,
    StackedOutputLinear,
    unstack_layers,
)
from torchrl_reg.regularizers.checks import as_number


class NoisyLinear(nn.Linear):
    r"""``y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b`` with factorised noise, drawn anew by each pass.

    :math:`\epsilon_w = f(\epsilon_{out}) f(\epsilon_{in})^\top`, :math:`\epsilon_b = f(\epsilon_{out})`,
    :math:`f(x) = \mathrm{sgn}(x) \sqrt{|x|}` of standard normal vectors. One draw serves all rows of a pass, the online
    and the target network each draw their own. In eval mode there is no noise. The noise is not a buffer, so there is
    nothing to reset, to copy to a target network or to save.

    TorchRL's :class:`~torchrl.modules.NoisyLinear` follows the exploration type, which every LossModule sets to
    deterministic: inside a loss it has no noise and its sigmas get no gradient.

    Args:
        in_features, out_features, bias, device, dtype: as for :class:`torch.nn.Linear`; ``weight`` and ``bias`` are
            the means, uniform at first within ``1 / sqrt(in_features)``.
        sigma: sigma_0 > 0, without unit; the standard deviations ``weight_sigma`` and ``bias_sigma`` start at
            ``sigma / sqrt(in_features)``.

    Shape: ``[*B, in_features]`` -> ``[*B, out_features]``; features and noise are without unit.

    Raises:
        ValueError: ``sigma`` not > 0.

    Source: Fortunato et al., "Noisy Networks for Exploration", ICLR 2018.

    >>> layer, x = NoisyLinear(4, 3), torch.randn(8, 4)
    >>> bool((layer(x) == layer(x)).all()), bool((layer.eval()(x) == layer(x)).all())
    (False, True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sigma: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        number = as_number(sigma)
        if number is None or not 0 < number < math.inf:
            raise ValueError(f"sigma must be > 0 and finite, got {sigma!r}.")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        deviation = number / math.sqrt(in_features)
        self.weight_sigma = nn.Parameter(torch.full_like(self.weight, deviation))
        self.bias_sigma = nn.Parameter(torch.full_like(self.bias, deviation)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        drawn = torch.randn(self.in_features + self.out_features, device=x.device, dtype=self.weight.dtype)
        across, along = torch.copysign(drawn.abs().sqrt(), drawn).split((self.in_features, self.out_features))
        weight = torch.addcmul(self.weight, self.weight_sigma, along.unsqueeze(-1) * across)
        bias = None if self.bias is None else torch.addcmul(self.bias, self.bias_sigma, along)  # type: ignore[arg-type]
        return F.linear(x, weight, bias)


class NoisyOutputLinear(FullPrecision, NoisyLinear):
    """A noisy layer whose outputs are values, in full precision."""


class Dueling(nn.Module):
    """``q(s, a) = v(s) + adv(s, a) - mean_b adv(s, b)``, atom by atom where there are several values for each action.

    For an expected value and implicit quantiles the parts are Q-values, for a categorical distribution (C51) logits,
    whose softmax comes after. With ``baseline="max"`` the greedy action's advantage is zero and ``v = max_a q``: the
    limit tau -> 0 of an implicit Q-value, ``q = v + tau ln pi`` (Vieillard et al. 2021, section 3.3).

    Args:
        value: maps features ``[*B, F]`` to ``[*B, N]``, N values for each action (1 of Q-values), in reward units or
            logits.
        advantage: maps them to ``[*B, N * A]``, the values of all actions together by atom.
        num_actions: A.
        shared: layers before both.
        baseline: ``"mean"`` or ``"max"`` of the advantages, subtracted from them.

    Shape: ``[*B, F]`` -> ``[*B, N * A]``.

    Raises:
        ValueError: another ``baseline``; at the first pass, streams of other widths than N and N * A.

    Source: Wang et al., "Dueling Network Architectures for Deep Reinforcement Learning", ICML 2016, eqs. (8), (9).

    >>> net = Dueling(nn.Linear(16, 51), nn.Linear(16, 51 * 3), num_actions=3)
    >>> net(torch.randn(8, 16)).shape
    torch.Size([8, 153])
    """

    def __init__(
        self,
        value: nn.Module,
        advantage: nn.Module,
        *,
        num_actions: int,
        shared: nn.Module | None = None,
        baseline: str = "mean",
    ) -> None:
        if baseline not in ("mean", "max"):
            raise ValueError(f"baseline must be 'mean' or 'max', got {baseline!r}.")
        super().__init__()
        self.shared = nn.Identity() if shared is None else shared
        self.value, self.advantage = value, advantage
        self.num_actions, self.baseline = num_actions, baseline

    def forward(self, features: Tensor) -> Tensor:
        features = self.shared(features)
        value, advantage = self.value(features), self.advantage(features)
        wide = value.shape[-1] * self.num_actions
        if advantage.shape[-1] != wide:  # a value of width 1 would be broadcast to the wrong shape
            widths = f"{self.num_actions} times as wide as value ({wide} for {value.shape[-1]})"
            raise ValueError(f"advantage must be {widths}, got {advantage.shape[-1]}.")
        advantage = advantage.unflatten(-1, (-1, self.num_actions))
        baseline = advantage.mean(-1) if self.baseline == "mean" else advantage.amax(-1)
        return (advantage + (value - baseline).unsqueeze(-1)).flatten(-2)


def check_network(network: Any, name: str) -> nn.Module:
    """Returns ``network`` if it is a module, else raises ValueError."""
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} must be a network (a torch.nn.Module), got {network!r}.")
    return network


def layer_by_layer(network: nn.Module) -> Callable[..., Any]:
    """A function that runs the layers' ``forward`` in turn if ``network`` is nested sequences only, else ``network``.

    The output is the same and some 5 us a layer are saved, half the time of a small network; a ReLU after a linear
    layer or a layer norm is in place, because allocating memory costs more. Later changes to the network take effect:
    swapped parameters, train or eval mode. With hooks, or while compiling, the network is called as usual.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))
    >>> x = torch.randn(3, 4)
    >>> bool((layer_by_layer(network)(x) == network(x)).all())
    True
    """
    layers = _layers(network)
    if layers is None:
        return network
    modules = list(network.modules())
    hooks = [found for module in modules for found in call_hooks(module)]
    joins = type(network) is MLP  # MLP concatenates its inputs
    pairs = zip([None, *layers], layers, strict=False)
    steps = [_step(layer, may_overwrite=type(before) in (nn.Linear, nn.LayerNorm)) for before, layer in pairs]
    kinds = {type(layer) for layer in layers}
    norms = StackedLayerNorm in kinds and kinds <= {StackedLinear, StackedOutputLinear, StackedLayerNorm, nn.ReLU}

    def run(*inputs: Tensor) -> Tensor:
        plain = (joins or len(inputs) == 1) and not torch.compiler.is_compiling() and not has_global_module_hooks()
        if not plain or any(hooks) or any(map(compiled_call, modules)):
            return network(*inputs)
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
        if norms and x.ndim == 3 and x.shape[1] >= MANY_ROWS:
            networks = unstack_layers(layers)
            return torch.stack([run_one(rows) for run_one, rows in zip(networks, x.unbind(), strict=True)])
        for step in steps:
            x = step(x)
        return x

    return run


def _step(layer: nn.Module, *, may_overwrite: bool) -> Callable[[Tensor], Tensor]:
    """``layer`` in fewer Python calls; ``may_overwrite``: its input is not used again, nor by a gradient."""
    if type(layer) is nn.ReLU and may_overwrite:
        return torch.relu_
    if type(layer) is nn.LayerNorm:
        return partial(_layer_norm, layer)
    return partial(_linear, layer) if type(layer) is nn.Linear else layer.forward


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer.forward(x)`` with parameters from ``_parameters``, which skips the slow ``Module.__getattr__``."""
    parameters = layer._parameters
    if "weight" in parameters and "bias" in parameters:
        return nn.functional.linear(x, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]
    return layer.forward(x)  # a parametrized layer has them elsewhere


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """As :func:`_linear`."""
    parameters = layer._parameters
    if parameters.get("weight") is not None and parameters.get("bias") is not None:
        return torch.layer_norm(x, layer.normalized_shape, parameters["weight"], parameters["bias"], layer.eps)
    return layer.forward(x)


def _layers(network: nn.Module) -> list[Any] | None:
    """The layers of nested sequences, in order; None for any other network."""
    scalar_outputs = type(network) is MLP and isinstance(network.out_features, int)
    if not (type(network) is nn.Sequential or scalar_outputs):
        return None
    found: list[Any] = []
    for layer in network:  # type: ignore[attr-defined]
        nested = _layers(layer) if isinstance(layer, nn.Sequential) else [layer]
        if nested is None or type(layer).__call__ is not nn.Module.__call__:
            return None
        found += nested
    return found
