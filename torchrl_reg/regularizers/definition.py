"""The definition that every regularizer keeps, as a check.

Shapes: ``A`` actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.regularizers.regularizer import Regularizer


def check_regularizer(regularizer: Regularizer, *, num_actions: int = 4, tolerance: float = 1e-8) -> None:
    """Raise unless ``regularizer`` is what :class:`Regularizer` defines, at random ``q [B, A]`` (reward units).

    ``<pi, q> - cost = value``, ``<pi, tau_log_pi> = cost``, ``q - value = tau_log_pi`` on the support of ``pi`` and at
    most that off it, ``action_cost`` is ``tau_log_pi`` on the support and 0 off it, the short forms agree, and a masked
    action has probability 0; all in float64. For the test of a regularizer of one's own.

    Source: Geist et al. 2019 (A theory of regularized MDPs).

    Raises:
        ValueError: what does not hold, and by how much.

    >>> from torchrl_reg.regularizers import Entropy
    >>> check_regularizer(Entropy(0.5))
    """
    q = 2 * torch.randn(256, num_actions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = q.to(next((c.value.device for c in regularizer.coefficients().values()), q.device))
    with torch.no_grad():
        out = regularizer(q)
        support, gap = out.pi > 0, q - out.value.unsqueeze(-1)
        taken = torch.where(support, out.tau_log_pi, 0.0)
        value, tau_log_pi = regularizer.value_and_log_policy(q)
        searched, pi = regularizer.value_and_policy(q)
        policy = regularizer.policy(q)
        masked = regularizer(q, mask=torch.arange(num_actions, device=q.device).expand_as(q) > 0)
    zero = torch.zeros_like(q)
    claims: dict[str, tuple[Tensor, Tensor]] = {
        "a pi that sums to one": (out.pi.sum(-1), torch.ones_like(out.cost)),
        "no negative pi": (out.pi.clamp(max=0.0), zero),
        "<pi, q> - cost as its value": (out.value, (out.pi * q).sum(-1) - out.cost),
        "<pi, tau_log_pi> as its cost": ((out.pi * taken).sum(-1), out.cost),
        "tau_log_pi = q - value on the support": (taken, torch.where(support, gap, 0.0)),
        "tau_log_pi >= q - value off the support": ((gap - out.tau_log_pi).where(~support, zero), zero),
        "action_cost = tau_log_pi on the support, and 0 off it": (out.action_cost, taken),
        "one value in forward and value_and_log_policy": (value, out.value),
        "one tau_log_pi in forward and value_and_log_policy": (tau_log_pi, out.tau_log_pi),
        "one value in forward and value_and_policy": (searched, out.value),
        "one pi in forward and value_and_policy": (pi, out.pi),
        "one pi in forward and policy": (policy, out.pi),
        "a pi of 0 at a masked action": (masked.pi[:, 0], 0 * out.cost),
        "a pi that sums to one under a mask": (masked.pi.sum(-1), torch.ones_like(out.cost)),
    }
    for claim, (found, expected) in claims.items():
        excess = found - expected if claim.endswith("off the support") else (found - expected).abs()
        worst = float(torch.where(found == expected, 0.0, excess).max())
        if not worst <= tolerance:
            name = type(regularizer).__name__
            raise ValueError(f"{name} must have {claim}, got a difference of {worst:.3g}.")
