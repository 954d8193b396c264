"""Soft actor-critic: a policy that maximizes its entropy beside the smallest of its critics' values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor

from torchrl_reg.objectives.actor_critic import ActorCriticLoss, check_actor, distribution, reparametrized
from torchrl_reg.objectives.base import LossFunction, batch_mean, masked_mean
from torchrl_reg.regularizers.checks import check_flag
from torchrl_reg.regularizers.coefficients import Coefficient, entropy_temperature, in_process_group


class SoftActorCriticLoss(ActorCriticLoss):
    r"""Critics learn :math:`r + \gamma V(s')`, the policy minimizes :math:`E[\tau \ln \pi(a|s) - \min Q(s, a)]`.

    .. math:: V(s') = \min_c Q_{target, c}(s', a') - \tau \ln \pi(a'|s'), \qquad a' \sim \pi(s')

    TorchRL's :class:`~torchrl.objectives.SACLoss` of continuous actions in less time: at equal random state its losses,
    gradients and priorities are the same to the last bit. ``tau`` is its ``alpha``. What differs: weights of a
    prioritized sample count for the critics alone, what stands in rows that are masked or follow a terminal state
    counts for nothing, NaN included, and a fixed temperature has no ``loss_alpha``.

    With a ``target_entropy`` the temperature is a :class:`~torchrl_reg.regularizers.DualCoefficient`, which
    ``loss_alpha = ln tau (H(pi) - target_entropy)`` raises while the policy's entropy is below the target; its
    parameter is ``loss.tau_coefficient.log_value``.

    Args:
        actor_network: the policy, with reparametrized samples: :func:`~torchrl_reg.modules.box_actor`,
            :class:`~torchrl_reg.modules.FlowActor`.
        qvalue_network: a critic, or a list of them (two in the source; the smallest value counts).
        tau: the temperature, in reward units, fixed or where an adapted one starts; or a coefficient. Schedulable.
        target_entropy: adapt ``tau`` so that the policy's mean entropy becomes this many nats (the source takes minus
            the number of action dimensions); None keeps ``tau``.
        straight_through: take a :class:`~torchrl_reg.modules.MulticategoricalActor`, too, whose samples are
            straight-through ones: their gradient is biased.
        loss_function, reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`ActorCriticLoss`.

    Returns (in a TensorDict): ``loss_actor``, ``loss_qvalue``, with a target entropy ``loss_alpha``; the detached
    scalars ``alpha`` (the temperature in force) and ``entropy`` (nats, estimated from one action per state), and with
    diagnostics ``td_error`` (mean absolute), ``value`` (of the policy's actions), ``tau`` (the same as ``alpha``).
    Writes the priority, the largest absolute TD error of the critics ``[*B, 1]``.

    Raises:
        ValueError: a coefficient out of range, a ``target_entropy`` for a ``tau`` that is a coefficient already, an
            actor without reparametrized samples (at the first call), critics that do not read the action.

    Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018, eqs. (5), (9) and (18).

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> from torchrl_reg.modules import gaussian_actor
    >>> from torchrl_reg.objectives import PolyakTargetUpdate, SoftActorCriticLoss
    >>> actor = gaussian_actor(torch.nn.Linear(4, 4), low=[-1.0] * 2, high=[1.0] * 2)
    >>> critics = [ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"]) for _ in "ab"]
    >>> loss = SoftActorCriticLoss(actor, critics, tau=0.5, target_entropy=-2.0).make_value_estimator(gamma=0.99)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = actor(TensorDict({
    ...     "observation": torch.randn(8, 4),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8]))
    >>> out = loss(data)
    >>> out["loss_alpha"].backward()
    >>> bool((loss.tau_coefficient.log_value.grad - (out["entropy"] + 2.0)).abs() < 1e-5)
    True
    """

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        tau: float | Coefficient = 1.0,
        target_entropy: float | None = None,
        straight_through: bool = False,
        loss_function: LossFunction = "l2",
        **kwargs: Any,
    ) -> None:
        check_actor(actor_network)
        tau = entropy_temperature(tau, target_entropy)
        super().__init__(actor_network, qvalue_network, tau=tau, loss_function=loss_function, **kwargs)
        self.straight_through = check_flag(straight_through, "straight_through")
        self.make_value_estimator()

    def _loss_keys(self) -> list[str]:
        learnt = ["loss_alpha"] if self.tau_coefficient.is_learnt else []
        return [*super()._loss_keys(), *learnt, "alpha", "entropy"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses and detached scalars; writes the priority ``[*B, 1]``."""
        data, mask = self._clean(tensordict)
        following, tau = data.get("next"), self.tau
        actor, _ = self._bound(data, "actor_network")
        with torch.no_grad():  # first: the order in which SACLoss draws its actions
            next_action, next_log_pi = self._sampled(actor, following)
            target_critics = self._bound(data, "qvalue_network")[1]
            next_value = self._q(target_critics, following, next_action).amin(0) - tau * next_log_pi
            target = self._one_step_target(data, next_value)

        _, prediction = self._predicted(data)
        loss_qvalue, td_error = self._critic_loss(tensordict, prediction, target, mask)
        action, log_pi = self._sampled(actor, data)
        # Not amin, which shares the gradient out where critics agree.
        q = self._q(self._detached_critics(data), data, action).min(0).values
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": tau * log_pi - q}
        entropy = -log_pi.detach()
        statistic = batch_mean(entropy, mask).expand_as(entropy) if in_process_group() else entropy
        loss_alpha = self.tau_coefficient.objective(statistic)
        if loss_alpha is not None:
            losses["loss_alpha"] = loss_alpha
        rows = {"td_error": td_error.abs().mean(0), "value": q}
        scalars = {"alpha": tau.to(q.dtype, copy=True), "entropy": masked_mean(entropy, mask)}
        return self._output(data, losses, mask, rows, scalars, weighted=["loss_qvalue"])

    def _sampled(self, actor: Any, states: TensorDictBase) -> tuple[Tensor, Tensor]:
        """An action at ``states`` that carries a gradient, and its log-probability ``[*B]``."""
        dist = distribution(actor.network, states)
        return reparametrized(dist, states.batch_size, straight_through=self.straight_through)

    def _priority(self, td_error: Tensor) -> Tensor:
        return td_error.abs().amax(0)
