"""Soft DQN: the bootstrap is the entropy-regularized value of the next state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.functional import soft_value_and_log_policy
from torchrl_reg.objectives.bound_network import BoundQNetwork
from torchrl_reg.objectives.chosen import chosen_action_value
from torchrl_reg.objectives.diagnostics import soft_diagnostics
from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.value import RegValueEstimators


class SoftDQNLoss(QLearningLoss):
    """DQN with the soft value as bootstrap: ``r + gamma tau logsumexp(q_target(s', .) / tau)``.

    Equal to ``r + gamma sum_a pi(a|s') (q_target(s', a) - tau ln pi(a|s'))`` with ``pi = softmax(q_target / tau)``.
    The limit ``tau -> 0`` is :class:`~torchrl.objectives.DQNLoss`; :class:`MunchausenDQNLoss` with ``alpha=0`` is
    this loss.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units. Schedulable: ``loss.tau = 0.01``.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, diagnostics: see
            :class:`QLearningLoss`. The default distance is Huber (delta 1), as in the released Munchausen code.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (nats, online policy at s), ``action_gap``,
    ``kl`` (online to target policy at s), ``soft_gap`` (soft value minus max), ``td_error`` (mean absolute), ``tau``.

    Raises:
        ValueError: ``tau`` not a finite number > 0, unknown ``loss_function`` or ``reduction``.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, eq. (1).

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import PolyakTargetUpdate, SoftDQNLoss
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = SoftDQNLoss(actor, tau=0.5).make_value_estimator(gamma=0.9)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    tau: Tensor
    _schedulable_buffers = frozenset({"tau"})
    default_value_estimator: Any = RegValueEstimators.SOFT_TD0
    _stand_ins: ClassVar[dict[Any, Any]] = {
        ValueEstimators.TD0: RegValueEstimators.SOFT_TD0,
        ValueEstimators.TDLambda: RegValueEstimators.SOFT_TDLAMBDA,
    }
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[Any, ...]] = (
        *_stand_ins,
        RegValueEstimators.SOFT_TD0,
        RegValueEstimators.SOFT_TDLAMBDA,
    )

    def __init__(self, value_network: QValueActor | nn.Module, *, tau: float = 0.03, **kwargs: Any) -> None:
        super().__init__(value_network, tau=tau, **kwargs)

    def _target(
        self, tensordict: TensorDictBase, q: Tensor, action: Tensor, target_network: BoundQNetwork
    ) -> tuple[Tensor, dict[str, Tensor]]:
        estimator = self.value_estimator
        if not (self.diagnostics or estimator.needs_policy):
            return estimator.value_estimate(tensordict, next_q=target_network(tensordict.get("next")), tau=self.tau), {}
        # The online values join in for the diagnostics only: one more row of one kernel.
        q_target, next_q = target_network.both(tensordict, root_counts=estimator.needs_policy)
        values, log_policies = soft_value_and_log_policy(torch.stack((next_q, q_target, q)), self.tau)
        log_pi_a = chosen_action_value(log_policies[1], action, self.action_space)
        target = estimator.value_estimate(
            tensordict, next_value=values[0].unsqueeze(-1), tau_log_pi=log_pi_a, tau=self.tau
        )
        return target, soft_diagnostics(q, log_policies[1:], self.tau) if self.diagnostics else {}
