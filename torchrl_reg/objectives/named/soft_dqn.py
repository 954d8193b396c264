"""Soft DQN: the bootstrap is the entropy-regularized value of the next state."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.value import RegValueEstimators
from torchrl_reg.regularizers import Coefficient, Entropy


class SoftDQNLoss(QLearningLoss):
    """DQN with the soft value as bootstrap: ``r + gamma tau logsumexp(q_target(s', .) / tau)``.

    Equal to ``r + gamma sum_a pi(a|s') (q_target(s', a) - tau ln pi(a|s'))`` with ``pi = softmax(q_target / tau)``.
    The limit ``tau -> 0`` is :class:`~torchrl.objectives.DQNLoss`; :class:`MunchausenDQNLoss` with ``alpha=0`` is
    this loss.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units, or what it may cost, ``"loss<=1%"``. Schedulable:
            ``loss.tau = 0.01``.
        double_dqn: let the online network choose the policy at s', which the target network evaluates:
            ``sum_a pi_online(a|s') (q_target(s', a) - tau ln pi_online(a|s'))``.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The released Munchausen code's distance is ``"smooth_l1"``.

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

    _stand_ins = QLearningLoss._stand_ins | {
        ValueEstimators.TD0: RegValueEstimators.SOFT_TD0,
        ValueEstimators.TDLambda: RegValueEstimators.SOFT_TDLAMBDA,
    }

    def __init__(
        self, value_network: QValueActor | nn.Module, *, tau: float | str | Coefficient = 0.03, **kwargs: Any
    ) -> None:
        super().__init__(value_network, regularizer=Entropy(tau), **kwargs)
