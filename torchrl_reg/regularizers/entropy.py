"""Shannon entropy and the Boltzmann policy, which is also evaluated without it.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.functional import soft_policy, soft_value_and_log_policy, soft_value_and_policy
from torchrl_reg.functional.munchausen import finite_action_gap
from torchrl_reg.functional.soft import masked_values, temperature_and_divisor
from torchrl_reg.regularizers.coefficient import Coefficient, coefficient
from torchrl_reg.regularizers.guaranteed import temperature
from torchrl_reg.regularizers.regularizer import Regularized, Regularizer


class Entropy(Regularizer):
    """``Omega(pi) = -tau H(pi)``: ``pi = softmax(q / tau)``, ``value = tau logsumexp(q / tau)``, of ``q [*B, A]``.

    Args:
        tau: temperature > 0 in reward units; a loss to stay within, as ``"loss<=1%"`` (:class:`GuaranteedTemperature`);
            or a :class:`Coefficient` that learns it. ``regularizer.tau = 0.01`` assigns to it.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", ICML 2017.

    >>> entropy = Entropy(0.5)
    >>> out = entropy(torch.zeros(1, 3))
    >>> [round(x, 4) for x in (*out.pi[0].tolist(), *out.value.tolist(), *out.cost.tolist())]
    [0.3333, 0.3333, 0.3333, 0.5493, -0.5493]
    """

    coefficient_names = ("tau",)
    compares = stackable = True
    tau = coefficient("tau_coefficient", "The current temperature, in reward units.")
    scalar_form = "entropy"

    def __init__(self, tau: float | str | Coefficient = 0.03) -> None:
        super().__init__()
        self.tau_coefficient = temperature(tau)

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        value, tau_log_pi = self.value_and_log_policy(masked_values(q, mask))
        pi = (tau_log_pi / temperature_and_divisor(self.tau, tau_log_pi.dtype)[1]).exp()
        action_cost = torch.where(pi > 0, tau_log_pi, 0.0)
        return Regularized(pi, (pi * action_cost).sum(-1), value, tau_log_pi, action_cost)

    def cost_range(self, num_actions: int) -> float:
        """``ln A``."""
        return math.log(num_actions)

    def policy(self, q: Tensor) -> Tensor:
        return soft_policy(q, self.tau)

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return soft_value_and_log_policy(q, self.tau)

    def value_and_policy(self, q: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return soft_value_and_policy(masked_values(q, mask), self.tau)

    def diagnostics(
        self, q: Tensor, tau_log_pi: Tensor, *, reference: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """``entropy`` and ``kl`` to the target's policy (nats), ``action_gap`` and ``soft_gap`` (reward units)."""
        # A masked action has probability 0 and an infinite logarithm: floored, so that 0 * inf stays 0.
        floor = torch.finfo(tau_log_pi.dtype).min / 4
        both = tau_log_pi.unsqueeze(0) if reference is None else torch.stack((tau_log_pi, reference))
        logs = (both / self.tau).clamp(min=floor)
        log_pi = logs[0]
        pi = log_pi.exp()
        rows: dict[str, Any] = {"entropy": -(pi * log_pi).sum(-1), "action_gap": finite_action_gap(q)}
        if reference is not None:
            rows["kl"] = (pi * (log_pi - logs[1])).sum(-1)
        return rows | {"soft_gap": -tau_log_pi.amax(-1)}


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
