"""Per-row scalars that the losses report, computed from Q-values they already have.

Shapes: ``*B`` batch, ``A`` actions. Nothing here carries a gradient, and everything is in one pass over the stacked
online and target values: on a small network each kernel counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional import action_gap, munchausen_bonus, scaled_log_policy
from torchrl_reg.objectives.chosen import chosen_action_value


@torch.no_grad()
def soft_diagnostics(q: Tensor, q_target: Tensor, tau: Tensor) -> dict[str, Tensor]:
    """Rows ``[*B]`` at s: ``entropy`` and ``kl`` (nats), ``action_gap`` and ``soft_gap`` (reward units).

    ``pi = softmax(q / tau)`` is the online policy; ``kl`` is KL(online || target policy).
    """
    return _policy_rows(q, scaled_log_policy(torch.stack((q, q_target)), tau), tau)


@torch.no_grad()
def munchausen_diagnostics(
    q: Tensor,
    q_target: Tensor,
    action: Tensor,
    action_space: str,
    *,
    tau: Tensor,
    alpha: Tensor,
    clip_min: Tensor,
) -> dict[str, Tensor]:
    """:func:`soft_diagnostics` plus ``bonus`` (reward units) and ``bonus_clipped`` (1 where the clip is active)."""
    scaled = scaled_log_policy(torch.stack((q, q_target)), tau)
    log_pi_a = chosen_action_value(scaled[1], action, action_space)
    return {
        **_policy_rows(q, scaled, tau),
        "bonus": munchausen_bonus(log_pi_a, alpha, clip_min),
        "bonus_clipped": (log_pi_a < clip_min).to(scaled.dtype),
    }


def finite_action_gap(q: Tensor) -> Tensor:
    """Best minus second best of ``q [*B, A]``, ``[*B]``; 0 where a mask leaves one action."""
    gap = action_gap(q)
    return torch.where(gap < torch.finfo(gap.dtype).max / 16, gap, 0.0)


def _policy_rows(q: Tensor, scaled_log_policies: Tensor, tau: Tensor) -> dict[str, Tensor]:
    """Rows from ``tau ln pi`` of the online and the target network, ``[2, *B, A]``."""
    # A masked action has probability 0 and an infinite logarithm: floored, so that 0 * inf stays 0.
    floor = torch.finfo(scaled_log_policies.dtype).min / 4
    log_pi, log_target = (scaled_log_policies / tau).clamp(min=floor)
    pi = log_pi.exp()
    return {
        "entropy": -(pi * log_pi).sum(-1),
        "action_gap": finite_action_gap(q),
        "kl": (pi * (log_pi - log_target)).sum(-1),
        "soft_gap": -scaled_log_policies[0].amax(-1),
    }
