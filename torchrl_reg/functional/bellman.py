"""The Bellman error as a temperature.

Shapes: ``*B`` batch. Half-precision inputs are computed and returned in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_reg.functional.soft import at_least_float32


def bellman_temperature(
    td_error: Tensor, scale: float | Tensor, *, exponent: float = 2.0, weights: Tensor | None = None
) -> Tensor:
    r"""Temperature :math:`\epsilon = \frac{c}{p} \frac{1}{B} \sum_b |\delta_b|^p` of a Q-function with TD errors delta.

    It is 0 only when every error is; the policy ``softmax(Q / epsilon)`` is then greedy. Estimated from sampled
    transitions, it is biased upwards by the variance of the target (with ``p = 2`` by ``c / 2`` of it), so it stays
    above 0 where transitions are random. Scaling the rewards by ``k`` scales it by ``k^p``, but Q only by ``k``: the
    policy keeps its shape if ``p = 1`` or if ``c`` is divided by ``k^(p - 1)``.

    Source: Fellows et al. 2019 (VIREL), definition of the residual error. The released code takes ``p = 2`` and ``c =
    2 beta_scale``, its port in softlearning ``c = beta_scale``.

    Args:
        td_error: ``delta = r + gamma V(s') - Q(s, a)`` ``[*B]``, in reward units.
        scale: ``c > 0``, in reward units to the power ``1 - p``.
        exponent: ``p >= 1``.
        weights: weight of each row ``[*B]``, >= 0, for instance a mask; None weighs all equally.

    Returns:
        The temperature, 0-dimensional.

    Raises:
        ValueError: if ``scale`` is a number that is not finite and > 0, or ``exponent`` is below 1.
    """
    if not isinstance(scale, Tensor) and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a finite number > 0, got {scale}.")
    if not 1 <= exponent < math.inf:
        raise ValueError(f"exponent must be a finite number >= 1, got {exponent}.")
    error = at_least_float32(td_error)
    if weights is None:
        return scale / exponent * error.abs().pow(exponent).mean()
    # Rows of weight 0 may hold NaN, whose power would have a gradient of NaN.
    power = torch.where(weights > 0, error, 0.0).abs().pow(exponent)
    total = (weights * power).sum()
    return scale / exponent * total / weights.sum().to(power.dtype).clamp(min=torch.finfo(power.dtype).tiny)
