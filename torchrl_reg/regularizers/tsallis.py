"""Tsallis entropy: policies that leave bad actions out; sparsemax at q = 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_reg.functional.soft import masked_values, temperature_and_divisor
from torchrl_reg.regularizers.checks import check_number
from torchrl_reg.regularizers.coefficient import Coefficient, coefficient
from torchrl_reg.regularizers.guaranteed import temperature
from torchrl_reg.regularizers.regularizer import Regularized, Regularizer


class Tsallis(Regularizer):
    """``Omega(pi) = tau (sum_a pi(a)^q - 1) / (q (q - 1))``: ``pi = [(q - 1) (x / tau - c)]_+^{1 / (q - 1)}``.

    ``x [*B, A]`` are the action values, ``q`` the entropic index.

    ``q = 2`` is sparsemax, in closed form: ``Omega = (tau / 2) (sum pi^2 - 1)``, ``pi = [x / tau - c]_+``, one-hot as
    soon as the best action leads by ``tau``. Any other ``q > 1`` finds ``c`` by bisection; ``q -> 1`` is the entropy.

    The deformed logarithm ``tau_log_pi = tau (pi^{q-1} - sum pi^q) / (q - 1) + Omega`` is ``grad Omega`` shifted so
    that ``<pi, tau_log_pi> = Omega``: with it the Munchausen term is mirror descent with Omega's Bregman divergence.
    For ``q = 2`` it lies in ``[-tau, 0]``, so a clip at or below ``-tau`` never acts.

    Args:
        tau: temperature > 0 in reward units, ``"loss<=1%"`` (:class:`GuaranteedTemperature`), or a
            :class:`Coefficient`.
        q: entropic index > 1.

    Raises:
        ValueError: ``tau`` not a finite number > 0, ``q`` not a finite number > 1.

    Source: Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016; Lee, Choi, Oh, "Sparse Markov Decision
    Processes with Causal Sparse Tsallis Entropy Regularization", RA-L 2018 (this scale at q = 2).

    >>> out = Tsallis(1.0)(torch.tensor([0.5, 0.0, -2.0]))
    >>> out.pi.tolist(), out.value.tolist()
    ([0.75, 0.25, 0.0], 0.5625)
    """

    coefficient_names = ("tau",)
    stackable = True
    tau = coefficient("tau_coefficient", "The current temperature, in reward units.")

    def __init__(self, tau: float | str | Coefficient = 0.03, q: float = 2.0) -> None:
        super().__init__()
        self.tau_coefficient = temperature(tau)
        self.q = check_number(q, "q", "the entropic index, above 1")
        if self.q <= 1:
            raise ValueError(f"q must be > 1 (its limit 1 is Entropy), got {q!r}.")

    @property
    def scalar_form(self) -> str | None:
        """See :mod:`torchrl_reg.planning.scalar_search`."""
        return "sparsemax" if self.q == 2 else None

    def cost_range(self, num_actions: int) -> float:
        """``(1 - A^{1 - q}) / (q (q - 1))``: ``(A - 1) / (2 A)`` of the sparsemax."""
        return (1 - num_actions ** (1 - self.q)) / (self.q * (self.q - 1))

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        x = masked_values(q, mask)
        best = x.amax(-1, keepdim=True)
        # In units of tau, relative to the best action; actions more than 1 / (q - 1) below it have probability 0.
        z = ((x - best) / temperature_and_divisor(self.tau, x.dtype)[1]).clamp(min=-2.0 / (self.q - 1))
        pi = self._sparsemax(z) if self.q == 2 else self._entmax(z)
        # Not pi ** (q - 1) itself, whose gradient at 0 is infinite for q < 2.
        power = torch.where(pi > 0, pi, 1.0).pow(self.q - 1) * (pi > 0)
        total = (pi * power).sum(-1, keepdim=True)
        omega = (total - 1) / (self.q * (self.q - 1))
        tau_log_pi = self.tau * ((power - total) / (self.q - 1) + omega)
        action_cost = torch.where(pi > 0, tau_log_pi, 0.0)
        gaps = torch.where(pi > 0, x - best, 0.0)
        value = best + (pi * gaps).sum(-1, keepdim=True) - self.tau * omega
        return Regularized(pi, self.tau * omega.squeeze(-1), value.squeeze(-1), tau_log_pi, action_cost)

    @staticmethod
    def _sparsemax(z: Tensor) -> Tensor:
        ordered = z.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        sums = ordered.cumsum(-1) - 1
        support = (count * ordered > sums).sum(-1, keepdim=True).clamp(min=1)  # 0 in a row of NaN
        return (z - sums.gather(-1, support - 1) / support).clamp(min=0)

    def _entmax(self, z: Tensor) -> Tensor:
        scaled = (self.q - 1) * z
        low, high = torch.full_like(scaled[..., :1], -1.0), torch.zeros_like(scaled[..., :1])
        for _ in range(60):  # halvings: past the last bit of float64
            middle = (low + high) / 2
            too_much = (scaled - middle).clamp(min=0).pow(1 / (self.q - 1)).sum(-1, keepdim=True) > 1
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        pi = (scaled - (low + high) / 2).clamp(min=0).pow(1 / (self.q - 1))
        return pi / pi.sum(-1, keepdim=True)

    def diagnostics(self, q: Tensor, tau_log_pi: Tensor, **_: Any) -> dict[str, Tensor]:
        """``entropy`` (nats), ``support`` (share of actions), ``action_gap`` and ``soft_gap`` (reward units)."""
        support = (self.policy(q) > 0).to(tau_log_pi.dtype).mean(-1)
        return super().diagnostics(q, tau_log_pi) | {"support": support}
