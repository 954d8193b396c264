"""Per-row scalars that the losses report, computed from Q-values they already have.

Shapes: ``*B`` batch, ``A`` actions. To be called without gradients. On a small network each kernel counts, so the
log-policies of the online and the target network come stacked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional import action_gap, kl_divergence, munchausen_bonus, soft_gap


def soft_diagnostics(q: Tensor, log_policies: Tensor, tau: Tensor) -> dict[str, Tensor]:
    """Rows ``[*B]`` at s: ``entropy`` and ``kl`` (nats), ``action_gap`` and ``soft_gap`` (reward units).

    ``q`` are the online Q-values ``[*B, A]``; ``log_policies [2, *B, A]`` is ``tau ln pi`` of the target and of the
    online network; ``kl`` is KL(online || target policy).
    """
    # A masked action has probability 0 and an infinite logarithm: floored, so that 0 * inf stays 0.
    floor = torch.finfo(log_policies.dtype).min / 4
    log_target, log_pi = (log_policies / tau).clamp(min=floor)
    pi = log_pi.exp()
    return {
        "entropy": -(pi * log_pi).sum(-1),
        "action_gap": finite_action_gap(q),
        "kl": (pi * (log_pi - log_target)).sum(-1),
        "soft_gap": -log_policies[1].amax(-1),
    }


def bonus_diagnostics(tau_log_pi_a: Tensor, alpha: Tensor, clip_min: Tensor) -> dict[str, Tensor]:
    """Rows ``[*B]``: ``bonus`` (reward units) and ``bonus_clipped`` (1 where the clip is active)."""
    return {
        "bonus": munchausen_bonus(tau_log_pi_a, alpha, clip_min),
        "bonus_clipped": (tau_log_pi_a < clip_min).to(tau_log_pi_a.dtype),
    }


def prior_diagnostics(
    q: Tensor, log_pi: Tensor, log_prior: Tensor, tau: Tensor, mask: Tensor | None
) -> dict[str, Tensor]:
    """Rows ``[*B]`` at s for ``pi ~ rho exp(q / tau)``: nats, but ``action_gap`` and ``soft_gap`` in reward units.

    ``mutual_information`` is ``KL(pi(.|s) || mean pi)``, whose mean over the rows of ``mask`` estimates ``I(S; A)``
    under the batch's states; it is at most the log of their number, and biased upwards in small batches. ``kl`` is
    ``KL(pi || rho)``, so ``mean kl = mean mutual_information + KL(mean pi || rho)`` for one prior of all states.
    """
    pi = log_pi.exp()
    used = pi if mask is None else torch.where(mask.unsqueeze(-1), pi, 0.0)
    count = pi[..., 0].numel() if mask is None else mask.sum().clamp(min=1)
    marginal = used.reshape(-1, pi.shape[-1]).sum(0) / count
    log_prior = log_prior.to(q.dtype).expand_as(q)
    return {
        "entropy": torch.special.entr(pi).sum(-1),
        "action_gap": finite_action_gap(q),
        "kl": kl_divergence(log_pi, log_prior),
        "soft_gap": soft_gap(q, tau, log_prior=log_prior),
        "prior_entropy": -(log_prior.exp() * log_prior).sum(-1),
        "mutual_information": kl_divergence(log_pi, marginal.log()),
    }


def finite_action_gap(q: Tensor) -> Tensor:
    """Best minus second best of ``q [*B, A]``, ``[*B]``; 0 where a mask leaves one action."""
    gap = action_gap(q)
    return torch.where(gap < torch.finfo(gap.dtype).max / 16, gap, 0.0)
