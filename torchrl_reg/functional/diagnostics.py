"""Scalar diagnostics of a regularized policy.

Shapes: ``*B`` batch, ``A`` actions. Half-precision inputs are computed and returned in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional.temperature import at_least_float32


def action_gap(q: Tensor) -> Tensor:
    """Best minus second best action value, ``q_(1) - q_(2)``; 0 at a tie.

    Source: Farahmand 2011; Bellemare et al. 2016 (Increasing the action gap).

    Args:
        q: action values ``[*B, A]`` with ``A >= 2``, in reward units.

    Returns:
        Gaps ``[*B]``, in reward units; infinite where a single action is unmasked.

    Raises:
        ValueError: if there are fewer than two actions.
    """
    if q.shape[-1] < 2:
        raise ValueError(f"q must hold at least two actions, got shape {tuple(q.shape)}.")
    best, second = at_least_float32(q).topk(2, dim=-1).values.unbind(-1)
    return best - second


def policy_entropy(pi: Tensor, *, dim: int = -1) -> Tensor:
    r"""Shannon entropy :math:`H(\pi) = -\sum_a \pi(a) \ln \pi(a)`, with :math:`0 \ln 0 = 0`.

    Source: the definition.

    Args:
        pi: probabilities ``[*B, A]`` (not their logarithms).
        dim: dimension of the actions.

    Returns:
        Entropies ``[*B]``, in nats.
    """
    pi = at_least_float32(pi)
    # The floor keeps the gradient at a probability of 0 finite; ln 0 would make it infinite.
    return torch.special.entr(pi.clamp(min=torch.finfo(pi.dtype).tiny)).sum(dim)


def kl_divergence(log_p: Tensor, log_q: Tensor, *, dim: int = -1) -> Tensor:
    r"""Kullback-Leibler divergence :math:`KL(p \| q) = \sum_a p(a) (\ln p(a) - \ln q(a))`.

    Actions with ``p = 0`` add nothing, whatever ``q``; ``p > 0`` where ``q = 0`` makes it infinite.

    Source: the definition.

    Args:
        log_p: log-probabilities of the first distribution ``[*B, A]``, ``-inf`` allowed.
        log_q: those of the second, broadcastable to ``[*B, A]``, ``-inf`` allowed.
        dim: dimension of the actions.

    Returns:
        Divergences ``[*B]``, in nats.
    """
    log_p, log_q = at_least_float32(log_p), at_least_float32(log_q)
    p = log_p.exp()
    log_ratio = torch.where(p > 0.0, log_p - log_q, 0.0)
    return (p * log_ratio).sum(dim)
