"""Soft TD(0) with an action prior: the backup of mutual-information regularization, and of SQL with a uniform prior."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import TD0Estimator

from torchrl_reg.functional import soft_value
from torchrl_reg.modules import ActionPrior
from torchrl_reg.objectives.value.one_step import one_step_return
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.regularized import RegularizedEstimator
from torchrl_reg.objectives.value.soft_td import refuse_double_dqn


@register_value_estimator(RegValueEstimators.PRIOR_SOFT_TD0, default_kwargs={"gamma": 0.99, "differentiable": True})
class PriorSoftTD0Estimator(RegularizedEstimator, TD0Estimator):
    """One-step target ``r + gamma^n (1 - terminated) (1/beta) ln sum_a rho(a) exp(beta q(s', a))``, ``[*B, 1]``.

    Needs only the next state, so it also serves TorchRL's stock :class:`~torchrl.objectives.DQNLoss`. No gradient
    reaches the prior.

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        prior: ``rho`` and ``beta``, shared, not copied; None if every call passes ``beta`` and ``log_prior``.

    Raises:
        ValueError: neither a prior here nor its values at a call.

    Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl.objectives import DQNLoss
    >>> from torchrl_reg.modules import ActionPrior
    >>> from torchrl_reg.objectives.value import PriorSoftTD0Estimator
    >>> loss = DQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> estimator = PriorSoftTD0Estimator.for_loss(loss, gamma=0.99, prior=ActionPrior(3, beta=2.0))
    >>> _ = loss.make_value_estimator(estimator)
    """

    _defaults = {"gamma": 0.99}

    def __init__(
        self,
        *,
        gamma: float,
        value_network: TensorDictModuleBase,
        prior: ActionPrior | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(gamma=gamma, value_network=value_network, **kwargs)
        self.prior = prior

    @classmethod
    def _check_loss(cls, loss_module: LossModule, network: TensorDictModuleBase) -> None:
        refuse_double_dqn(cls, loss_module)

    def _soft_value(self, q: Tensor, given: Any) -> Tensor:
        beta, log_prior = given.get("beta"), given.get("log_prior")
        if (beta is None or log_prior is None) and self.prior is None:
            raise ValueError(
                f"prior must be given to {type(self).__name__}, or beta and log_prior to value_estimate, got None."
            )
        beta = self.prior.beta if beta is None else beta  # type: ignore[union-attr]
        log_prior = self.prior.log_prior if log_prior is None else log_prior  # type: ignore[union-attr]
        return soft_value(q, 1.0 / beta, log_prior=log_prior.detach())

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        *,
        next_q: Tensor | None = None,
        beta: Tensor | float | None = None,
        log_prior: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, 1]``; ``next_q [*B, A]`` saves the pass through the network.

        ``beta`` and ``log_prior`` (``[A]``, or ``[*B, A]`` at s') stand in for the prior's.
        """
        if next_value is None:
            given = {"next_q": next_q, "beta": beta, "log_prior": log_prior}
            next_value = self._next_value(tensordict, target_params, given)
        return one_step_return(tensordict, self.tensor_keys, self.gamma, next_value)
