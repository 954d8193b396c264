"""Projection onto a grid of atoms, and the quantile Huber loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from torchrl_reg.functional.soft import at_least_float32, promoted


def categorical_projection(values: Tensor, masses: Tensor, support: Tensor) -> Tensor:
    r"""Masses on an even grid with the mean of the given atoms, which are first clipped to its ends.

    .. math:: m_i = \sum_j \left[1 - |[t_j]_{v_{min}}^{v_{max}} - z_i| / \Delta\right]_0^1 p_j

    Each atom's mass goes to its two neighbours on the grid. Within the grid the mean is kept, and the variance grows
    by :math:`\Delta^2 \sum_j p_j f_j (1 - f_j)`, ``f_j`` being an atom's distance to the lower neighbour over
    :math:`\Delta`.

    Source: Bellemare, Dabney, Munos 2017 (C51), eq. (7) and Algorithm 1.

    Args:
        values: atoms ``[*B, M]``, in reward units.
        masses: their probabilities ``[*B, M]``.
        support: the grid ``[N]``, ascending and even, ``N >= 2``.

    Returns:
        Probabilities ``[*B, N]``.

    Raises:
        ValueError: if ``masses`` does not have the shape of ``values``, or ``support`` is not ``[N]`` with N >= 2.
    """
    if masses.shape != values.shape:
        raise ValueError(f"masses must have the shape of values {tuple(values.shape)}, got {tuple(masses.shape)}.")
    if support.ndim != 1 or len(support) < 2:
        raise ValueError(f"support must be a grid [N] of at least 2 atoms, got shape {tuple(support.shape)}.")
    values, masses = promoted(values, masses)
    support = support.to(values.dtype)
    last = len(support) - 1
    # Where an atom falls, in steps of the grid. An atom exactly on it gives all its mass to the lower neighbour.
    place = (values - support[0]) * (last / (support[-1] - support[0]))
    place = place.clamp(0, last)
    lower = place.floor()
    to_upper = masses * (place - lower)
    index = lower.nan_to_num().long()  # NaN stays in the masses, but cannot be an index
    out = torch.zeros((*values.shape[:-1], last + 1), dtype=masses.dtype, device=masses.device)
    out = out.scatter_add(-1, index, masses - to_upper)
    return out.scatter_add(-1, (index + 1).clamp(max=last), to_upper)


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
