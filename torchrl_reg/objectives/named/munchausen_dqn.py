"""Munchausen DQN: soft DQN plus a scaled log-policy in the reward."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrl.modules import QValueActor
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.shaping import Munchausen
from torchrl_reg.objectives.value import RegValueEstimators
from torchrl_reg.regularizers import Coefficient, Entropy


class MunchausenDQNLoss(QLearningLoss):
    """M-DQN target ``r + alpha [tau ln pi(a|s)]_{clip_min}^0 + gamma sum_a' pi(a'|s') (q(s', a') - tau ln pi(a'|s'))``.

    ``q`` is the target network everywhere in the target and ``pi = softmax(q / tau)``. The bonus is added once, to the
    stored action; with n-step data it belongs to the first transition only. At a terminal state the bonus is kept and
    the bootstrap dropped; a truncated episode still bootstraps. ``alpha=0`` is :class:`SoftDQNLoss`.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units, or what it may cost, ``"loss<=1%"``. Schedulable.
        alpha: Munchausen weight in [0, 1]. Schedulable. It multiplies after the clip: the bonus is in
            ``[alpha * clip_min, 0]``.
        clip_min: lower clip (<= 0) of ``tau ln pi``, in reward units; None for no clip. Schedulable.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The released code's distance is ``"smooth_l1"``.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (nats), ``action_gap``, ``kl`` (online to
    target policy at s), ``soft_gap``, ``bonus``, ``bonus_clipped`` (share of rows at the clip), ``td_error``, ``tau``.

    Raises:
        ValueError: ``tau`` not a finite number > 0, ``alpha`` outside [0, 1], ``clip_min`` > 0.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, eq. (2). The released code
    clips M-DQN's bonus to ``[clip_min, 1]`` and M-IQN's to ``[clip_min, 0]``; the two are equal, since
    ``tau ln pi <= 0``.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = MunchausenDQNLoss(actor, tau=0.03, alpha=0.9, clip_min=-1.0).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> out = loss(data)
    >>> bool(out["bonus"] <= 0), data["td_error"].shape
    (True, torch.Size([8, 1]))
    """

    _stand_ins = QLearningLoss._stand_ins | {
        ValueEstimators.TD0: RegValueEstimators.MUNCHAUSEN_TD0,
        ValueEstimators.TDLambda: RegValueEstimators.SOFT_TDLAMBDA,
    }

    def __init__(
        self,
        value_network: QValueActor | nn.Module,
        *,
        tau: float | str | Coefficient = 0.03,
        alpha: float = 0.9,
        clip_min: float | None = -1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(value_network, regularizer=Entropy(tau), shaping=Munchausen(alpha, clip_min), **kwargs)
