"""Advantage learning: DQN whose reward is lowered by the advantage gap of the stored action."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrl.modules import QValueActor

from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.objectives.shaping import AdvantageGap
from torchrl_reg.regularizers import HardMax


class AdvantageLearningLoss(QLearningLoss):
    """AL target ``r + gamma max q(s', .) - alpha (max q(s, .) - q(s, a))``; the ``tau -> 0`` limit of M-DQN.

    With ``persistent=True`` (PAL) the gap is the smaller of those of ``a`` at s and at s'; at a terminal s', whose
    values mean nothing, the gap at s alone. ``q`` is the target network. Nothing is clipped.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        alpha: weight of the gap in [0, 1]; values near 1 widen the action gap by ``1 / (1 - alpha)``. Schedulable.
        persistent: persistent advantage learning.
        loss_function, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction, diagnostics: see
            :class:`QLearningLoss`. The released code's distance is ``"smooth_l1"``.

    Returns (in a TensorDict): ``loss`` and detached scalars ``action_gap``, ``bonus`` (``-alpha`` times the gap),
    ``td_error``, all in reward units.

    Raises:
        ValueError: ``alpha`` outside [0, 1].

    Source: Bellemare et al., "Increasing the Action Gap", AAAI 2016, eqs. (7) and (9). The persistent form uses the
    undiscounted gap at s', as its Atari experiments do; pfrl's does not mask terminal states.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import AdvantageLearningLoss, HardTargetUpdate
    >>> actor = QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3))
    >>> loss = AdvantageLearningLoss(actor, alpha=0.5, persistent=True).make_value_estimator(gamma=0.9)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["bonus"] <= 0)
    True
    """

    def __init__(
        self, value_network: QValueActor | nn.Module, *, alpha: float = 0.9, persistent: bool = False, **kwargs: Any
    ) -> None:
        shaping = AdvantageGap(alpha, persistent=persistent)
        super().__init__(value_network, regularizer=HardMax(), shaping=shaping, **kwargs)
