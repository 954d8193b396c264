"""A user's regularizer, in 23 lines; tests/recipes/test_own_regularizer.py trains, evaluates and plans with it.

    PYTHONPATH=tests/recipes python recipes/q_learning.py regularizer._target_=own_regularizer.LogBarrier \
        +regularizer.tau=0.1
"""

import torch
from torch import Tensor

from torchrl_reg.regularizers import Regularized, Regularizer


class LogBarrier(Regularizer):
    """``Omega(pi) = -tau sum_a ln pi(a)``: a probability falls as 1 over the distance from the best."""

    coefficient_names = ("tau",)

    def __init__(self, tau: float = 0.1) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = q if mask is None else q.masked_fill(~mask, -torch.inf)
        allowed = q > torch.finfo(q.dtype).min / 2
        scale = q.amax(-1, keepdim=True) + self.tau
        for _ in range(30):  # Newton's method, from below: sum_a tau / (scale - q(a)) = 1
            pi = self.tau / (scale - q)
            scale = scale + (pi.sum(-1, keepdim=True) - 1) / (pi.square() / self.tau).sum(-1, keepdim=True)
        pi = torch.where(allowed, pi, 0.0)
        pi = pi / pi.sum(-1, keepdim=True)
        cost = -self.tau * torch.where(allowed, pi.log(), 0.0).sum(-1)
        value = (pi * torch.where(allowed, q, 0.0)).sum(-1) - cost
        tau_log_pi = q - value.unsqueeze(-1)
        return Regularized(pi, cost, value, tau_log_pi, torch.where(allowed, tau_log_pi, 0.0))
