"""A Boltzmann policy whose entropy is neither rewarded nor charged."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.functional import soft_policy
from torchrl_reg.regularizers.entropy import Entropy
from torchrl_reg.regularizers.regularizer import Regularized, masked_values


class Boltzmann(Entropy):
    """``pi = softmax(q / tau)`` as for :class:`Entropy`, but ``value = <pi, q>``: values without an entropy term.

    ``q [*B, A]`` is in reward units. This policy is evaluated but maximizes no objective: it is VIREL's, whose
    temperature is driven to 0. At a constant ``tau`` the fixed point is that of the softmax operator, which is not a
    contraction. So its ``tau_log_pi``, ``tau ln pi``, is not that of its cost, 0.

    Args:
        tau: temperature > 0 in reward units, or a :class:`Coefficient` that learns it.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Fellows et al., "VIREL", NeurIPS 2019.

    >>> out = Boltzmann(0.5)(torch.tensor([[0.0, 1.0]]))
    >>> [round(x, 4) for x in (*out.pi[0].tolist(), *out.value.tolist(), *out.cost.tolist())]
    [0.1192, 0.8808, 0.8808, 0.0]
    """

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = masked_values(q, mask)
        value, tau_log_pi = self.value_and_log_policy(q)
        pi = soft_policy(q, self.tau)
        return Regularized(pi, torch.zeros_like(value), value, tau_log_pi, torch.zeros_like(pi))

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        _, tau_log_pi = super().value_and_log_policy(q)
        pi = soft_policy(q, self.tau)
        # A masked action has probability 0, but its value may be infinite.
        return (pi * torch.where(pi > 0, q, 0.0)).sum(-1), tau_log_pi

    def step_cost(self, tau_log_pi: Tensor) -> Tensor:
        return torch.zeros_like(tau_log_pi)
