"""E2W, the exploring softmax of maximum-entropy tree search.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_reg.functional.soft import Temperature, at_least_float32, soft_policy


def e2w_exploration(visits: Tensor, num_actions: int, epsilon: float) -> Tensor:
    r"""Exploration weight :math:`\lambda(s) = \min(1, \epsilon A / \ln(N(s) + 1))`.

    An unvisited node has weight 1, and so has every node until ``N(s) >= exp(epsilon A) - 1``: choose epsilon well
    below ``ln(budget) / A``, or the search stays uniform. Unclipped, the formula is infinite at ``N = 0`` and exceeds 1
    for small ``N``; other implementations write ``ln(N + 2)`` or drop ``A``.

    Source: Xiao et al. 2019 (MENTS), equation (5); the clip is ours.

    Args:
        visits: visits ``N(s)`` of the node ``[*B]``.
        num_actions: number of actions A.
        epsilon: exploration > 0, without unit.

    Returns:
        Weights in (0, 1] ``[*B]``.

    Raises:
        ValueError: if ``epsilon`` is not a finite number > 0.
    """
    if not 0.0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be a finite number > 0, got {epsilon}.")
    return (epsilon * num_actions / torch.log1p(at_least_float32(visits))).clamp(max=1.0)


def e2w_policy(q: Tensor, visits: Tensor, tau: Temperature, epsilon: float) -> Tensor:
    r"""E2W, :math:`\pi(a) = (1 - \lambda) \, \mathrm{softmax}(q / \tau)(a) + \lambda / A`, as probabilities.

    :math:`\lambda` is :func:`e2w_exploration`. An action with ``q = -inf`` (never tried) gets only its share of
    :math:`\lambda`; if no action was tried, the policy is uniform.

    Source: Xiao et al. 2019 (MENTS), equation (5).

    Args:
        q: action values ``[*B, A]``, in reward units.
        visits: visits of the node ``[*B]``, or of each action ``[*B, A]``, which are summed.
        tau: temperature >= 0, in reward units.
        epsilon: exploration > 0, without unit.

    Returns:
        Probabilities ``[*B, A]``.

    Raises:
        ValueError: if ``tau`` is a negative or non-finite number or not 0-dimensional, if ``epsilon`` is not a finite
            number > 0, or if ``visits`` has another shape.
    """
    q = at_least_float32(q)
    if visits.shape == q.shape:
        visits = visits.sum(-1)
    if visits.shape != q.shape[:-1]:
        raise ValueError(f"visits must have shape {list(q.shape[:-1])} or {list(q.shape)}, got {list(visits.shape)}.")
    num_actions = q.shape[-1]
    lam = e2w_exploration(visits.to(q.dtype), num_actions, epsilon).unsqueeze(-1)
    unknown = (q == -math.inf).all(-1, keepdim=True)
    softmax = torch.where(unknown, 1 / num_actions, soft_policy(q.masked_fill(unknown, 0.0), tau))
    return (1 - lam) * softmax + lam / num_actions
