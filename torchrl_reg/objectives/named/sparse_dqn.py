"""Sparse DQN: the bootstrap is the sparsemax, whose policy leaves bad actions out."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrl.modules import QValueActor

from torchrl_reg.objectives.q_learning import QLearningLoss
from torchrl_reg.regularizers import Coefficient, Tsallis


class SparseDQNLoss(QLearningLoss):
    """DQN with the sparsemax as bootstrap: ``r + gamma (<pi, q_target(s', .)> + (tau / 2) (1 - sum_a pi(a|s')^2))``.

    ``pi = [q_target / tau - c]_+`` is one-hot as soon as the best action leads by ``tau``; ``tau -> 0`` is
    :class:`~torchrl.objectives.DQNLoss`.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or module with ``action_space``), ``[*B, A]`` values.
        tau: temperature > 0, in reward units, or what it may cost, ``"loss<=1%"``; half the
            weight of ``1 - sum pi^2``. Schedulable.
        **kwargs: those of :class:`QLearningLoss`, a ``shaping`` among them.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (Shannon's, nats), ``support`` (share of the
    actions with a probability), ``action_gap``, ``soft_gap``, ``td_error``, ``tau``.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Lee, Choi, Oh, "Sparse Markov Decision Processes with Causal Sparse Tsallis Entropy Regularization", RA-L
    2018, section IV.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, SparseDQNLoss
    >>> loss = SparseDQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), tau=0.5)
    >>> target_update = HardTargetUpdate(loss.make_value_estimator(gamma=0.9), period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["support"] <= 1)
    True
    """

    def __init__(
        self, value_network: QValueActor | nn.Module, *, tau: float | str | Coefficient = 0.03, **kwargs: Any
    ) -> None:
        super().__init__(value_network, regularizer=Tsallis(tau), **kwargs)
