"""Exploration by noise in the weights, and values split into a state's and an action's part."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrl_reg.regularizers.checks import as_number


class NoisyLinear(nn.Linear):
    r"""``y = (mu_w + sigma_w * eps_w) x + mu_b + sigma_b * eps_b`` with factorised noise, drawn anew by each pass.

    :math:`\epsilon_w = f(\epsilon_{out}) f(\epsilon_{in})^\top`, :math:`\epsilon_b = f(\epsilon_{out})`,
    :math:`f(x) = \mathrm{sgn}(x) \sqrt{|x|}` of standard normal vectors. One draw serves all rows of a pass, the online
    and the target network each draw their own. In eval mode there is no noise. The noise is no buffer: nothing is
    left to reset, copy to a target network or save.

    TorchRL's :class:`~torchrl.modules.NoisyLinear` follows the exploration type, which every LossModule sets to
    deterministic: there it has no noise and its sigmas get no gradient.

    Args:
        in_features, out_features, bias, device, dtype: as for :class:`torch.nn.Linear`; ``weight`` and ``bias`` are
            the means, uniform at first within ``1 / sqrt(in_features)``.
        sigma: sigma_0 > 0; the standard deviations ``weight_sigma`` and ``bias_sigma`` start at
            ``sigma / sqrt(in_features)``.

    Shape: ``[*B, in_features]`` -> ``[*B, out_features]``.

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


class Dueling(nn.Module):
    """``q(s, a) = v(s) + adv(s, a) - mean_b adv(s, b)``, atom by atom where there are several values for each action.

    For an expected value and implicit quantiles the parts are Q-values, for a categorical distribution (C51) logits,
    whose softmax comes after. With ``baseline="max"`` the greedy action's advantage is zero and ``v = max_a q``: the
    limit tau -> 0 of an implicit Q-value, ``q = v + tau ln pi`` (Vieillard et al. 2021, section 3.3).

    Args:
        value: maps features ``[*B, F]`` to ``[*B, N]``, N values for each action (1 of Q-values).
        advantage: maps them to ``[*B, N * A]``, the values of all actions together by atom.
        num_actions: A.
        shared: layers before both.
        baseline: ``"mean"`` or ``"max"``, what is taken off the advantages.

    Shape: ``[*B, F]`` -> ``[*B, N * A]``.

    Raises:
        ValueError: another ``baseline``.

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
        advantage = self.advantage(features).unflatten(-1, (-1, self.num_actions))
        baseline = advantage.mean(-1) if self.baseline == "mean" else advantage.amax(-1)
        return (advantage + (self.value(features) - baseline).unsqueeze(-1)).flatten(-2)
