"""KL to a prior: fixed, averaged over the policies so far (mutual information), or a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from torchrl_reg.functional import floored_log_prior, kl_divergence, soft_gap, soft_policy
from torchrl_reg.functional.soft import (
    at_least_float32,
    finite_action_gap,
    masked_values,
    soft_value_and_log_ratio,
    temperature_and_divisor,
)
from torchrl_reg.regularizers.checks import (
    ExactBuffers,
    check_integer,
    check_number,
    check_temperature,
    exact_where_possible,
)
from torchrl_reg.regularizers.coefficients import Coefficient, as_coefficient, coefficient
from torchrl_reg.regularizers.policies import Regularized, Regularizer, SavedArguments


class PriorKL(Regularizer):
    """``Omega(pi) = tau KL(pi || rho)``: ``pi ~ rho exp(q / tau)``, ``value = tau ln sum_a rho(a) exp(q(a) / tau)``.

    ``tau_log_pi`` is ``tau ln (pi / rho)``, which may be positive, and so may a Munchausen term. An action mask does
    not renormalize ``rho``: the value then pays ``-tau ln rho(allowed)``.

    Args:
        tau: temperature > 0 in reward units, or a :class:`Coefficient`; not with an :class:`ActionPrior`, which has
            its own inverse temperature. ``regularizer.tau = 0.1`` sets it in either case.
        prior: an :class:`ActionPrior`, shared with everything else that holds or learns it; probabilities ``[A]``; or
            None for the uniform prior over however many actions there are. An action of probability 0 is never taken;
            where it was stored, its ``tau_log_pi`` is ``-inf``.
        network: a prior of the state in its place: a TensorDict module that writes logits ``[*B, A]`` to its last
            out-key. Losses train it towards the policy (``loss_prior``); needs an ActionPrior, for beta and the floor.

    Raises:
        ValueError: ``tau`` not a finite number > 0, given twice or not at all; a prior that is no distribution.

    Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019.

    >>> kl = PriorKL(0.5, prior=[0.5, 0.25, 0.25])
    >>> kl(torch.zeros(3)).pi.tolist(), round(float(kl(torch.zeros(3)).value), 6)
    ([0.5, 0.25, 0.25], 0.0)
    """

    prior: ActionPrior | None
    log_rho: Tensor | None
    dual_statistic = "kl"
    diagnostic_keys = (*Regularizer.diagnostic_keys, "kl", "prior_entropy", "mutual_information")
    exact_buffers = ("log_rho",)

    def __init__(
        self,
        tau: float | Coefficient | None = None,
        *,
        prior: ActionPrior | PriorLike | None = None,
        network: TensorDictModuleBase | None = None,
    ) -> None:
        super().__init__()
        shared = prior if isinstance(prior, ActionPrior) else None
        if (shared is None) == (tau is None):
            raise ValueError(
                f"tau must be given, or an ActionPrior with its own beta, got tau={tau!r} and prior={prior!r}."
            )
        if network is not None and shared is None:
            raise ValueError(
                f"prior must be an ActionPrior where network is given, for beta and the floor, got {prior!r}."
            )
        self.prior = shared
        own = None if prior is None or isinstance(prior, ActionPrior) else check_probabilities(prior, len(prior)).log()
        self.register_buffer("log_rho", own)
        self.coefficient_names = ("tau",) if shared is None else ("beta",)  # type: ignore[misc]
        if shared is None:
            self.tau_coefficient = as_coefficient(tau, name="tau", check=check_temperature)
        self.network = network
        if network is not None:
            self.in_keys, self.own_out_keys = list(network.in_keys), ["loss_prior"]

    @property
    def scalar_form(self) -> str | None:
        """See :mod:`torchrl_reg.planning.scalar_search`."""
        supported = self.log_rho is None or bool(self.log_rho.isfinite().all())
        return "kl" if self.network is None and supported else None

    def _logits(self, tensordict: TensorDictBase) -> Tensor:
        assert self.network is not None
        logits: Tensor = self.network(tensordict.select(*self.network.in_keys)).get(self.network.out_keys[-1])
        return logits

    @torch.no_grad()
    def at_states(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        if self.network is None:
            return {}
        return {"log_prior": self.prior.floored(self._logits(tensordict))}  # type: ignore[union-attr]

    def own_losses(self, tensordict: TensorDictBase, tau_log_pi: Tensor, **also: Tensor) -> dict[str, Tensor]:
        """``KL(pi || rho_phi) [*B]``, with gradients into the prior network alone."""
        if self.network is None:
            return {}
        log_rho = at_least_float32(self._logits(tensordict)).log_softmax(-1)
        return {"loss_prior": kl_divergence(self.log_policy(tau_log_pi, **also), log_rho)}

    @property
    def tau(self) -> Tensor:
        """The current temperature, in reward units; ``1 / beta`` of an ActionPrior."""
        return self.tau_coefficient.value if self.prior is None else self.prior.beta.reciprocal()

    @tau.setter
    def tau(self, value: Any) -> None:
        if self.prior is None:
            self.tau_coefficient.assign(value)
        else:
            self.prior.beta = 1.0 / (value if isinstance(value, Tensor) else check_temperature(value))

    @property
    def beta(self) -> Tensor:
        """The current inverse temperature, per unit of reward."""
        return self.tau_coefficient.value.reciprocal() if self.prior is None else self.prior.beta

    @property
    def beta_coefficient(self) -> Coefficient:
        """That of the ActionPrior."""
        assert self.prior is not None, "this PriorKL has a tau_coefficient"
        return self.prior.beta_coefficient

    def log_prior(self, q: Tensor, given: Tensor | None = None) -> Tensor:
        """``ln rho``, broadcastable to ``q [*B, A]``: ``given`` (``[*B, A]``, of the state), or the one held here.

        Raises:
            ValueError: a prior over another number of actions.
        """
        if given is None:
            given = self.log_rho if self.prior is None else self.prior.log_prior
        if given is None:
            return torch.full((q.shape[-1],), -math.log(q.shape[-1]), dtype=torch.float64, device=q.device)
        if given.shape[-1] != q.shape[-1]:
            raise ValueError(f"The prior must be over the network's {q.shape[-1]} actions, got {given.shape[-1]}.")
        return given

    def forward(self, q: Tensor, *, mask: Tensor | None = None, log_prior: Tensor | None = None) -> Regularized:
        """The policy at ``q [*B, A]``; ``log_prior [*B, A]`` is a prior of the state, in place of the one held here."""
        q = masked_values(q, mask)
        log_prior = self.log_prior(q, log_prior)
        value, tau_log_pi = self.value_and_log_policy(q, log_prior=log_prior)
        pi = (tau_log_pi / temperature_and_divisor(self.tau, q.dtype)[1] + log_prior.to(q.dtype)).exp()
        action_cost = torch.where(pi > 0, tau_log_pi, 0.0)
        return Regularized(pi, (pi * action_cost).sum(-1), value, tau_log_pi, action_cost)

    def value_and_log_policy(self, q: Tensor, *, log_prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return soft_value_and_log_ratio(q, self.tau, self.log_prior(q, log_prior))

    def policy(self, q: Tensor, log_prior: Tensor | None = None) -> Tensor:
        return soft_policy(q, self.tau, log_prior=self.log_prior(q, log_prior))

    def greedy(self, q: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """``argmax_a q(a) + tau ln rho(a)``, ``[*B]``."""
        return greedy_under_prior(q, self.tau, self.log_prior(q, log_prior))

    def diagnostics(
        self, q: Tensor, tau_log_pi: Tensor, *, rows: Tensor | None = None, log_prior: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """Nats, but ``action_gap`` and ``soft_gap`` in reward units; ``kl`` is ``KL(pi || rho)``.

        ``mutual_information`` is ``KL(pi(.|s) || mean pi)``, whose mean over the rows estimates ``I(S; A)`` under the
        batch's states; it is at most the log of their number, and biased upwards in small batches. So ``mean kl =
        mean mutual_information + KL(mean pi || rho)`` for one prior of all states.
        """
        gap, q = finite_action_gap(q), at_least_float32(q)
        log_prior = self.log_prior(q, log_prior).to(q.dtype).expand_as(q)
        log_pi = self.log_policy(tau_log_pi, log_prior)
        pi = log_pi.exp()
        used = pi if rows is None else torch.where(rows.unsqueeze(-1), pi, 0.0)
        count = pi[..., 0].numel() if rows is None else rows.sum().clamp(min=1)
        marginal = used.reshape(-1, pi.shape[-1]).sum(0) / count
        return {
            "entropy": torch.special.entr(pi).sum(-1),
            "action_gap": gap,
            "kl": kl_divergence(log_pi, log_prior),
            "soft_gap": soft_gap(q, self.tau, log_prior=log_prior),
            "prior_entropy": -(log_prior.exp() * log_prior.clamp(min=torch.finfo(q.dtype).min)).sum(-1),
            "mutual_information": kl_divergence(log_pi, marginal.log()),
        }

    def log_policy(self, tau_log_pi: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """``ln pi``, floored, so that a masked action's probability times its logarithm stays 0."""
        log_pi = tau_log_pi * self.beta + self.log_prior(tau_log_pi, log_prior).to(tau_log_pi.dtype)
        return log_pi.clamp(min=torch.finfo(tau_log_pi.dtype).min / 4)


PriorLike = Sequence[float] | Tensor


class ActionPrior(SavedArguments, ExactBuffers):
    """A distribution ``rho`` over actions and the inverse temperature ``beta`` of ``pi(a|s) ~ rho(a) exp(beta q)``.

    Both are buffers in float64 for networks of any dtype: rates of 1e-6 would be lost in half precision. Every
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
        self.beta_coefficient = as_coefficient(beta, name="beta", check=check_beta, device=device)

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
        """``argmax_a ln rho(a) + beta q(a)``, ``[*B]``; finite for any ``beta q``; argmax of q if rho is uniform."""
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
