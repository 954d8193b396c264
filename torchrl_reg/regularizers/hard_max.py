"""No regularizer: the maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_reg.functional.munchausen import finite_action_gap
from torchrl_reg.functional.soft import masked_values
from torchrl_reg.regularizers.regularizer import Regularized, Regularizer


class HardMax(Regularizer):
    """``Omega = 0``: the value is the maximum and the policy the first greedy action.

    ``tau_log_pi = q - max q`` (of ``q [*B, A]``, in reward units), the limit of ``tau ln pi`` as ``tau -> 0``: minus
    the advantage gap. A Munchausen term with it is advantage learning.

    Source: Watkins 1989 (Q-learning); Vieillard et al. 2020 (Munchausen RL) for the limit.

    >>> out = HardMax()(torch.tensor([[1.0, 3.0, 2.0]]))
    >>> out.pi.tolist(), out.value.tolist(), out.tau_log_pi.tolist()
    ([[0.0, 1.0, 0.0]], [3.0], [[-2.0, 0.0, -1.0]])
    """

    greedy_policy = stackable = True
    scalar_form = "hard_max"

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = masked_values(q, mask)
        best = q.amax(-1, keepdim=True)
        pi = (q.argmax(-1, keepdim=True) == torch.arange(q.shape[-1], device=q.device)).to(q.dtype)
        nothing = self.step_cost(q)
        return Regularized(pi, nothing[..., 0], best.squeeze(-1), q - best, nothing)

    def step_cost(self, tau_log_pi: Tensor) -> Tensor:
        return torch.zeros_like(tau_log_pi)

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        q = masked_values(q, None)
        best = q.amax(-1, keepdim=True)
        return best.squeeze(-1), q - best

    def diagnostics(self, q: Tensor, tau_log_pi: Tensor, **_: Any) -> dict[str, Tensor]:
        """``action_gap`` alone: its policy has no entropy."""
        return {"action_gap": finite_action_gap(q)}
