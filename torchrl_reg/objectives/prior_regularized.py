"""What the losses regularized towards an action prior share: the prior, its inverse temperature, its network.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.modules import QValueActor

from torchrl_reg.functional import kl_divergence, scaled_log_policy
from torchrl_reg.functional.temperature import at_least_float32
from torchrl_reg.objectives.bound_network import BoundModule
from torchrl_reg.objectives.diagnostics import prior_diagnostics
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.regularized_loss import blank_rows, masked_mean
from torchrl_reg.regularizers.action_prior import ActionPrior, PriorLike, check_beta


class PriorRegularizedLoss(QLearningLoss):
    """Base of the losses with policy ``pi ~ rho exp(beta q)``; ``rho`` and ``beta`` live in ``loss.prior``.

    Args:
        value_network: as the subclass says.
        prior: an :class:`~torchrl_reg.modules.ActionPrior` (shared with whoever else holds it), probabilities ``[A]``,
            or None for uniform.
        beta: inverse temperature > 0, per unit of reward; default 1. Not with an ActionPrior, which has its own.
            Schedulable: ``loss.beta = 2.0``.
        prior_network: a state-dependent prior instead: a TensorDict module that reads some of the observation and
            writes logits ``[*B, A]`` to its last out-key. It is trained here, towards the policy (``loss_prior``).
        **kwargs: see :class:`QLearningLoss`.
    """

    prior: ActionPrior
    prior_network: TensorDictModuleBase
    prior_network_params: TensorDictParams
    target_prior_network_params: TensorDictParams
    _schedulable_buffers = frozenset({"beta"})
    _coefficient_checks: ClassVar[dict[str, Callable[[Any], float]]] = {"beta": check_beta}

    def __init__(
        self,
        value_network: Any,
        *,
        prior: ActionPrior | PriorLike | None = None,
        beta: float | None = None,
        prior_network: TensorDictModuleBase | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(prior, ActionPrior) and beta is not None:
            raise ValueError(f"beta must be set in the ActionPrior given as prior, got beta={beta!r} besides.")
        super().__init__(value_network, **kwargs)
        self.prior = self._made_prior(prior, 1.0 if beta is None else beta)
        if prior_network is not None:
            self.convert_to_functional(prior_network, "prior_network")
            self._network_names = ("value_network", "prior_network")  # type: ignore[misc]
            self.out_keys = ["loss", "loss_prior"]
            self._set_in_keys()
            self._bind()

    def _made_prior(self, prior: ActionPrior | PriorLike | None, beta: float) -> ActionPrior:
        known = _actions_of(self.value_network)
        if isinstance(prior, ActionPrior):
            if known not in (None, prior.num_actions):
                raise ValueError(f"The prior must be over the network's {known} actions, got {prior.num_actions}.")
            return prior
        if known is None and prior is None:
            raise ValueError("prior must be given: the value network does not say how many actions there are.")
        count = len(prior) if known is None else known  # type: ignore[arg-type]
        return ActionPrior(count, probabilities=prior, beta=beta, device=self._default_device)

    # -- coefficients -------------------------------------------------------------------------------------------

    @property
    def beta(self) -> Tensor:
        """Inverse temperature, that of ``loss.prior``."""
        return self.prior.beta

    @beta.setter
    def beta(self, value: float | Tensor) -> None:
        self.prior.beta = value  # type: ignore[assignment]

    @property
    def log_prior(self) -> Tensor:
        """``ln rho [A]``, that of ``loss.prior``; unused with a prior_network."""
        return self.prior.log_prior

    def _owns(self, name: str) -> bool:
        return name == "beta" or super()._owns(name)

    # -- networks -----------------------------------------------------------------------------------------------

    @property
    def _has_prior_network(self) -> bool:
        return "prior_network" in self._network_names

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        if self._has_prior_network:
            following = [("next", key) for key in self.prior_network.in_keys]
            self._in_keys = list(dict.fromkeys([*self._in_keys, *following]))

    def _bound_module(self, name: str, params: TensorDictBase, private: bool) -> Any:
        if name == "prior_network":
            return BoundModule(self.prior_network, params, private=private)
        return super()._bound_module(name, params, private)

    def _prior_logits(self, tensordict: TensorDictBase) -> Tensor:
        network = self._bound(tensordict, "prior_network")[0].network
        return network(tensordict.select(*network.in_keys)).get(network.out_keys[-1])

    def _log_prior(self, tensordict: TensorDictBase, q: Tensor) -> Tensor:
        """``ln rho`` at the root of ``tensordict``, ``[A]`` or ``[*B, A]``; ``q [*B, A]`` is only measured."""
        log_prior = self.prior.log_prior
        if self._has_prior_network:
            log_prior = self.prior.floored(self._prior_logits(tensordict))
        if log_prior.shape[-1] != q.shape[-1]:
            raise ValueError(f"The prior must be over the network's {q.shape[-1]} actions, got {log_prior.shape[-1]}.")
        return log_prior

    # -- what the subclasses' targets end with ------------------------------------------------------------------

    def _prior_rows(self, tensordict: TensorDictBase, q: Tensor) -> dict[str, Tensor]:
        """Diagnostic rows at s, given the online ``q [*B, A]``, and the log-policy that a prior network learns from."""
        if not (self.diagnostics or self._has_prior_network):
            return {}
        q, tau = at_least_float32(q), self.beta.reciprocal()
        log_prior = self._log_prior(tensordict, q)
        # A masked action has probability 0 and an infinite logarithm: floored, so that 0 * inf stays 0.
        floor = torch.finfo(q.dtype).min / 4
        log_pi = (scaled_log_policy(q, tau, log_prior=log_prior) * self.beta).clamp(min=floor)
        rows = {}
        if self.diagnostics:
            rows = prior_diagnostics(q, log_pi, log_prior, tau, self._loss_mask(tensordict, q[..., 0]))
        return rows | {"log_pi": log_pi} if self._has_prior_network else rows

    def _note_td_error(self, rows: dict[str, Tensor], td_error: Tensor) -> None:
        super()._note_td_error(rows, td_error)
        rows["squared_td_error"] = td_error.square()

    def _output(
        self,
        tensordict: TensorDictBase,
        elementwise: Tensor,
        mask: Tensor | None,
        diagnostics: dict[str, Tensor],
        **terms: Tensor,
    ) -> TensorDict:
        # Always there, as an inverse temperature that follows it reads it.
        terms["squared_td_error"] = masked_mean(diagnostics.pop("squared_td_error"), mask)
        log_pi = diagnostics.pop("log_pi", None)
        if log_pi is not None:
            terms["loss_prior"] = self._distillation(tensordict, log_pi, mask)
        if self.diagnostics:
            terms["beta"] = self.beta.to(elementwise.dtype, copy=True)
        return super()._output(tensordict, elementwise, mask, diagnostics, **terms)

    def _distillation(self, tensordict: TensorDictBase, log_pi: Tensor, mask: Tensor | None) -> Tensor:
        """``KL(pi || rho_phi)`` reduced, with gradients into the prior network alone."""
        inputs = tensordict if mask is None else blank_rows(tensordict, mask, self.prior_network.in_keys)
        log_rho = at_least_float32(self._prior_logits(inputs)).log_softmax(-1)
        if mask is not None:
            log_pi = torch.where(mask.unsqueeze(-1), log_pi, log_rho.detach())
        rows = kl_divergence(log_pi, log_rho)
        weights = self._maybe_get_priority_weight(tensordict)
        return self._reduce_loss(rows, tensordict=None if mask is None else tensordict, weights=weights)


def _actions_of(network: Any) -> int | None:
    """Number of actions a Q-value actor says it has, if it does."""
    spec = network.spec if isinstance(network, QValueActor) else None
    if spec is None:
        return None
    keys = [key for key in spec.keys(True, True) if hasattr(getattr(spec[key], "space", None), "n")]
    return int(spec[keys[0]].space.n) if keys else None
