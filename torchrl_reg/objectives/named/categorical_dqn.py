"""Categorical DQN (C51) and its Munchausen form: the distribution of returns on a grid of atoms."""

from __future__ import annotations

from torchrl_reg.objectives.heads import Categorical
from torchrl_reg.objectives.named.munchausen_dqn import MunchausenDQNLoss
from torchrl_reg.objectives.q_learning import QLearningLoss


class CategoricalDQNLoss(QLearningLoss):
    """C51: cross-entropy of ``p(s, a)`` with the projection of the atoms ``r + gamma z_i`` of mass ``p_i(s', a*)``.

    ``a* = argmax_a sum_i z_i p_i(s', a)`` under the target network (the online one with ``double_dqn=True``). At a
    terminal s' all atoms lie on ``r``. Returns outside the grid are clipped to its ends.

    Args:
        value_network: a :class:`~torchrl_reg.modules.CategoricalQActor`; the grid is its own.
        double_dqn: choose ``a*`` with the online network, as TorchRL's
            :class:`~torchrl.objectives.DistributionalDQNLoss` always does.
        delay_value, action_space, reduction, use_prioritized_weights, weight_reduction,
            diagnostics: see :class:`QLearningLoss`.

    Returns (in a TensorDict): ``loss`` (nats) and detached scalars ``action_gap``, ``td_error`` (mean absolute
    difference of the means, reward units), ``clipped_mass`` (share of the targets' mass outside the grid). The priority
    ``[*B, 1]`` is the row's cross-entropy; Dopamine's Rainbow takes its square root.

    Raises:
        ValueError: a network that is not a CategoricalQActor.

    Source: Bellemare, Dabney, Munos, "A Distributional Perspective on Reinforcement Learning", ICML 2017, Algorithm 1.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import CategoricalQActor
    >>> from torchrl_reg.objectives import CategoricalDQNLoss, HardTargetUpdate
    >>> actor = CategoricalQActor(torch.nn.Linear(4, 51 * 3), num_atoms=51, spec=Categorical(3))
    >>> loss = CategoricalDQNLoss(actor).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    head_type = Categorical


class MunchausenCategoricalLoss(MunchausenDQNLoss):
    """Munchausen C51: the mixture over actions of the shifted atoms ``r + bonus + gamma (z_i - tau ln pi(a'|s'))``.

    Masses are ``pi(a'|s') p_i(s', a')`` and ``bonus = alpha [tau ln pi(a|s)]_{clip_min}^0``, with ``pi = softmax(sum_i
    z_i p_i / tau)`` of the target network. The mean of the mixture is M-DQN's target; every action's shifted
    distribution has that mean, so the mixture adds no variance between actions. Bonus and entropy widen the range of
    returns: with ``|r| <= 1`` it is ``[(-1 + alpha clip_min) / (1 - gamma), (1 + tau ln A) / (1 - gamma)]``.

    Args:
        value_network: a :class:`~torchrl_reg.modules.CategoricalQActor`; the grid is its own.
        tau: temperature > 0, in reward units. Schedulable.
        alpha: Munchausen weight in [0, 1]. Schedulable.
        clip_min: lower clip (<= 0) of ``tau ln pi``, in reward units; None for no clip. Schedulable.
        delay_value, action_space, reduction, use_prioritized_weights, weight_reduction,
            diagnostics: see :class:`QLearningLoss`.

    Returns (in a TensorDict): ``loss`` (nats), the detached scalars of :class:`MunchausenDQNLoss`, and
    ``clipped_mass`` (share of the targets' mass outside the grid). Writes the priority ``[*B, 1]``.

    Raises:
        ValueError: a coefficient out of range, a network that is not a CategoricalQActor.

    Source: ours, after Bellemare et al. 2017 (C51) and Vieillard et al. 2020 (Munchausen RL).

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import CategoricalQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, MunchausenCategoricalLoss
    >>> actor = CategoricalQActor(torch.nn.Linear(4, 51 * 3), num_atoms=51, spec=Categorical(3))
    >>> loss = MunchausenCategoricalLoss(actor, tau=0.03, alpha=0.9).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["bonus"] <= 0)
    True
    """

    head_type = Categorical
