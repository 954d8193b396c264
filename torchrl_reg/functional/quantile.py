"""Quantile regression for distributional values.

Shapes: ``*B`` batch, ``N`` / ``M`` online / target quantiles.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from torchrl_reg.functional.soft import at_least_float32


def quantile_huber_loss(z: Tensor, fractions: Tensor, z_target: Tensor, kappa: float) -> Tensor:
    r"""Quantile Huber loss, summed over the online and averaged over the target quantiles.

    .. math::
        \sum_i \frac1M \sum_j |\sigma_i - 1\{\delta_{ij} < 0\}| H_\kappa(\delta_{ij}) / \kappa,
        \qquad \delta_{ij} = z'_j - z_i

    with :math:`H_\kappa` the Huber loss; ``kappa = 0`` is its limit, the quantile (pinball) loss.

    Source: Dabney et al. 2018 (IQN). Half-precision inputs are computed and
    returned in float32. Gradients flow into every input: detach ``z_target`` if it is a target.

    Args:
        z: online quantile values ``[*B, N]``, in reward units.
        fractions: their quantile levels ``[*B, N]``, in [0, 1].
        z_target: target values ``[*B, M]``, in reward units.
        kappa: half-width of the quadratic part >= 0, in reward units.

    Returns:
        Losses ``[*B]``, in reward units.

    Raises:
        ValueError: if ``kappa`` is negative or NaN, if ``fractions`` does not have the shape of
            ``z``, or if ``z_target`` has another batch shape than ``z``.
    """
    if not kappa >= 0.0:
        raise ValueError(f"kappa must be >= 0, got {kappa}.")
    if fractions.shape != z.shape:
        raise ValueError(f"fractions must have the shape of z {tuple(z.shape)}, got {tuple(fractions.shape)}.")
    if z_target.shape[:-1] != z.shape[:-1]:
        raise ValueError(
            f"z_target must have the batch shape of z {tuple(z.shape[:-1])}, got {tuple(z_target.shape[:-1])}."
        )
    pairs = (*z.shape, z_target.shape[-1])
    online = at_least_float32(z).unsqueeze(-1).expand(pairs)
    target = at_least_float32(z_target).unsqueeze(-2).expand(pairs)
    level = at_least_float32(fractions).unsqueeze(-1)
    weight = torch.where(target < online, 1.0 - level, level)
    # smooth_l1_loss is the Huber loss over kappa, and the absolute error at kappa = 0.
    huber = smooth_l1_loss(online, target, reduction="none", beta=kappa)
    return (weight * huber).sum((-2, -1)) / z_target.shape[-1]
