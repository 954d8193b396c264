"""What the losses regularized towards an action prior share: the prior, its inverse temperature, its network.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.functional import kl_divergence
from torchrl_reg.functional.temperature import at_least_float32
from torchrl_reg.objectives.bound_network import BoundModule
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.regularized_loss import blank_rows
from torchrl_reg.objectives.value import RegValueEstimators
from torchrl_reg.regularizers import ActionPrior, PriorKL
from torchrl_reg.regularizers.action_prior import PriorLike


class PriorRegularizedLoss(QLearningLoss):
    """Base of the losses with policy ``pi ~ rho exp(beta q)``; ``rho`` and ``beta`` live in ``loss.prior``.

    Args:
        value_network: as the subclass says.
        prior: an :class:`~torchrl_reg.regularizers.ActionPrior` (shared with everything else that holds it),
            probabilities ``[A]``, or None for uniform.
        beta: inverse temperature > 0, per unit of reward; default 1. Not with an ActionPrior, which has its own.
            Schedulable: ``loss.beta = 2.0``.
        prior_network: a state-dependent prior instead: a TensorDict module that reads some of the observation and
            writes logits ``[*B, A]`` to its last out-key. It is trained here, towards the policy (``loss_prior``).
        **kwargs: see :class:`QLearningLoss`.
    """

    regularizer: PriorKL
    prior_network: TensorDictModuleBase
    prior_network_params: TensorDictParams
    target_prior_network_params: TensorDictParams
    _stand_ins = QLearningLoss._stand_ins | {
        ValueEstimators.TD0: RegValueEstimators.PRIOR_SOFT_TD0,
    }

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
            raise ValueError(f"beta must be set in the ActionPrior given as prior, got beta={beta!r} as well.")
        made = _made_prior(value_network, prior, 1.0 if beta is None else beta)
        super().__init__(value_network, regularizer=PriorKL(prior=made), **kwargs)
        self._reports_error = True  # for an inverse temperature that follows it
        if prior_network is not None:
            self.convert_to_functional(prior_network, "prior_network")
            self._network_names = ("value_network", "prior_network")  # type: ignore[misc]
            self.out_keys = [*self.out_keys, "loss_prior"]
            self._set_in_keys()
            self._bind()

    @property
    def prior(self) -> ActionPrior:
        """``rho`` and ``beta``."""
        assert self.regularizer.prior is not None
        return self.regularizer.prior

    @property
    def log_prior(self) -> Tensor:
        """``ln rho [A]``, that of ``loss.prior``; unused with a prior_network."""
        return self.prior.log_prior

    # -- a prior of the state -----------------------------------------------------------------------------------

    @property
    def _has_prior_network(self) -> bool:
        return "prior_network" in self._network_names

    @property
    def _watches(self) -> bool:
        return super()._watches or self._has_prior_network

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

    def _prior_at(self, tensordict: TensorDictBase, q: Tensor) -> dict[str, Tensor]:
        if not self._has_prior_network:
            return {}
        return {"log_prior": self.prior.floored(self._prior_logits(tensordict))}

    def _stacked_prior(self, tensordict: TensorDictBase, given: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self._has_prior_network:
            return {}
        states = {"next": tensordict.get("next"), "root": tensordict, "online": tensordict}
        return {"log_prior": torch.stack([self._prior_at(states[k], q)["log_prior"] for k, q in given.items()])}

    def _extra_rows(self, tau_log_pi: Tensor, **prior: Tensor) -> dict[str, Tensor]:
        return {"log_pi": self.regularizer.log_policy(tau_log_pi, **prior)} if self._has_prior_network else {}

    def _terms(
        self, tensordict: TensorDictBase, rows: dict[str, Tensor], mask: Tensor | None, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        log_pi = rows.pop("log_pi", None)
        terms = super()._terms(tensordict, rows, mask, dtype)
        return terms if log_pi is None else terms | {"loss_prior": self._distillation(tensordict, log_pi, mask)}

    def _distillation(self, tensordict: TensorDictBase, log_pi: Tensor, mask: Tensor | None) -> Tensor:
        """``KL(pi || rho_phi)`` reduced, with gradients into the prior network alone."""
        inputs = tensordict if mask is None else blank_rows(tensordict, mask, self.prior_network.in_keys)
        log_rho = at_least_float32(self._prior_logits(inputs)).log_softmax(-1)
        if mask is not None:
            log_pi = torch.where(mask.unsqueeze(-1), log_pi, log_rho.detach())
        rows = kl_divergence(log_pi, log_rho)
        weights = self._weights(tensordict, mask)
        return self._reduce_loss(rows, tensordict=None if mask is None else tensordict, weights=weights)


def _made_prior(network: Any, prior: ActionPrior | PriorLike | None, beta: float) -> ActionPrior:
    known = _actions_of(network)
    if isinstance(prior, ActionPrior):
        if known not in (None, prior.num_actions):
            raise ValueError(f"The prior must be over the network's {known} actions, got {prior.num_actions}.")
        return prior
    if known is None and prior is None:
        raise ValueError(
            "prior must be given where the value network does not say how many actions there are, got None."
        )
    count = len(prior) if known is None else known  # type: ignore[arg-type]
    return ActionPrior(count, probabilities=prior, beta=beta)


def _actions_of(network: Any) -> int | None:
    """Number of actions a Q-value actor says it has, if it does."""
    spec = network.spec if isinstance(network, QValueActor) else None
    if spec is None:
        return None
    keys = [key for key in spec.keys(True, True) if hasattr(getattr(spec[key], "space", None), "n")]
    return int(spec[keys[0]].space.n) if keys else None
