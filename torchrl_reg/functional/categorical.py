"""Categorical distributions of returns on a fixed grid of atoms.

Shapes: ``*B`` batch, ``M`` atoms of the target, ``N`` atoms of the grid. Half-precision inputs are computed and
returned in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    dtype = torch.promote_types(torch.promote_types(values.dtype, masses.dtype), torch.float32)
    values, masses, support = values.to(dtype), masses.to(dtype), support.to(dtype)
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
