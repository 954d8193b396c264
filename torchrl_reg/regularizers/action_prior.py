"""The action prior and the inverse temperature of mutual-information regularization.

One :class:`ActionPrior` is shared by everything that needs it: the loss, the exploration module, an actor, the updates.
It is a module because ``.to()`` replaces buffers: two references to a tensor would come apart, two references to a
module do not.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.functional import floored_log_prior, soft_policy
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.regularizers.checks import ExactBuffers, check_integer, check_number, exact_where_possible
from torchrl_reg.regularizers.coefficient import Coefficient, coefficient, made_coefficient
from torchrl_reg.regularizers.recorded import Recorded

PriorLike = Sequence[float] | Tensor


class ActionPrior(Recorded, ExactBuffers):
    """A distribution ``rho`` over actions and the inverse temperature ``beta`` of ``pi(a|s) ~ rho(a) exp(beta q)``.

    Both are buffers in float64, whatever the networks compute in: rates of 1e-6 would be lost in half precision. Every
    owner saves them in its ``state_dict``. A ``copy.deepcopy`` of one owner gets a prior of its own; copy all owners
    together (``copy.deepcopy((loss, explorer))``) to keep them tied.

    Args:
        num_actions: A.
        probabilities: ``[A]``, non-negative, summing to one; None is uniform.
        beta: inverse temperature > 0, per unit of reward, or a :class:`Coefficient` that learns it (several priors may
            share it). ``prior.beta = 2.0`` changes it in place.
        floor: smallest probability before normalization, in (0, 1 / A): a prior of 0 could never grow again.
        device: of the buffers.

    Raises:
        ValueError: a probability, ``beta`` or ``floor`` out of range.

    Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019.

    >>> prior = ActionPrior(3, probabilities=[0.5, 0.25, 0.25], beta=2.0)
    >>> prior.beta = 3.0
    >>> prior.policy(torch.zeros(3)).tolist()
    [0.5, 0.25, 0.25]
    """

    log_prior: Tensor
    exact_buffers = ("log_prior",)
    beta = coefficient("beta_coefficient", "The current inverse temperature, per unit of reward.")

    def __init__(
        self,
        num_actions: int,
        *,
        probabilities: PriorLike | None = None,
        beta: float | Coefficient = 1.0,
        floor: float = 1e-6,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_integer(num_actions, "num_actions", 1)
        if not 0 < floor < 1 / num_actions:
            raise ValueError(f"floor must be in (0, 1 / {num_actions}), got {floor!r}.")
        self.floor = floor
        rho = torch.full((num_actions,), 1 / num_actions, dtype=torch.float64)
        if probabilities is not None:
            rho = check_probabilities(probabilities, num_actions)
        self.register_buffer(
            "log_prior", exact_where_possible(lambda x: x.to(device))(floored_log_prior(rho.log(), floor))
        )
        self.beta_coefficient = made_coefficient(beta, name="beta", check=check_beta, device=device)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "log_prior" and name in self.__dict__.get("_buffers", ()):
            raise AttributeError("log_prior is shared and cannot be replaced: set it with prior.assign(probabilities).")
        super().__setattr__(name, value)

    @property
    def num_actions(self) -> int:
        """A."""
        return self.log_prior.shape[-1]

    @torch.no_grad()
    def assign(self, probabilities: Tensor) -> None:
        """Set ``rho [A]`` in place, floored and normalized; not checked, which would wait for the device."""
        self.log_prior.copy_(self.floored(probabilities.to(self.log_prior).log()))

    def floored(self, logits: Tensor) -> Tensor:
        """Log-probabilities ``[*B, A]`` of ``logits [*B, A]``, with this prior's floor."""
        return floored_log_prior(logits, self.floor)

    def policy(self, q: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """``pi [*B, A]`` of ``q [*B, A]``; ``log_prior`` (``[*B, A]``) stands in for the one held here."""
        return soft_policy(q, self.beta.reciprocal(), log_prior=self.log_prior if log_prior is None else log_prior)

    def greedy(self, q: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """``argmax_a ln rho(a) + beta q(a)``, ``[*B]``; finite whatever ``beta q``; argmax of q if rho is uniform."""
        return greedy_under_prior(q, self.beta.reciprocal(), self.log_prior if log_prior is None else log_prior)


def greedy_under_prior(q: Tensor, tau: Tensor, log_prior: Tensor) -> Tensor:
    """``argmax_a q(a) + tau ln rho(a)``, ``[*B]``, of ``q [*B, A]`` and ``log_prior`` (``[A]`` or ``[*B, A]``)."""
    q = at_least_float32(q)
    # In reward units and without the normalizer: added to it, small gaps of q would be rounded off.
    bonus = tau * (log_prior - log_prior.amax(-1, keepdim=True))
    return (q - q.amax(-1, keepdim=True) + bonus.to(q.dtype)).argmax(-1)


def check_beta(beta: Any, name: str = "beta") -> float:
    """Return ``beta`` if it is a finite number > 0, else raise ValueError."""
    return check_number(beta, name, "the inverse temperature", positive=True)


def check_probabilities(probabilities: PriorLike, num_actions: int) -> Tensor:
    """``probabilities`` as a float64 ``[A]``, if they are a distribution over that many actions, else ValueError."""
    rho = torch.as_tensor(probabilities, dtype=torch.float64).detach().cpu()
    if rho.shape != (num_actions,):
        raise ValueError(f"The prior must have a probability for each of {num_actions} actions, got {rho.tolist()}.")
    if not (rho >= 0).all():
        raise ValueError(f"The prior must not have negative probabilities, got {rho.tolist()}.")
    if not abs(float(rho.sum()) - 1) <= 1e-6:
        raise ValueError(f"The prior's probabilities must sum to one, got {rho.tolist()}, which sum to {rho.sum():g}.")
    return rho
