"""Named losses on distributions of returns: C51, QR-DQN, IQN and their Munchausen forms."""

from __future__ import annotations

from torchrl_reg.objectives.dqn import MunchausenDQNLoss
from torchrl_reg.objectives.heads import Categorical, FixedQuantiles, ImplicitQuantiles
from torchrl_reg.objectives.q_learning import QLearningLoss


class CategoricalDQNLoss(QLearningLoss):
    """C51: cross-entropy of ``p(s, a)`` with the projection of the atoms ``r + gamma z_i`` of mass ``p_i(s', a*)``.

    ``a* = argmax_a sum_i z_i p_i(s', a)`` under the target network (the online one with ``double_dqn=True``). At a
    terminal s' all atoms lie on ``r``. Returns outside the grid are clipped to its ends.

    Args:
        value_network: a :class:`~torchrl_reg.modules.CategoricalQActor`; the grid is its own.
        double_dqn: choose ``a*`` with the online network, as TorchRL's
            :class:`~torchrl.objectives.DistributionalDQNLoss` always does.
        delay_value, action_space, reduction, use_prioritized_weights: see :class:`QLearningLoss`.
        weight_reduction, diagnostics: see there.

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
        delay_value, action_space, reduction, use_prioritized_weights: see :class:`QLearningLoss`.
        weight_reduction, diagnostics: see there.

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


class QuantileRegressionDQNLoss(QLearningLoss):
    """QR-DQN: quantile Huber loss between ``theta_i(s, a)`` at ``(i + 1/2) / N`` and ``r + gamma theta_j(s', a*)``.

    ``a* = argmax_a mean_j theta_j(s', a)`` under the target network (the online one with ``double_dqn=True``). Summed
    over the N quantiles of the prediction, averaged over those of the target.

    Args:
        value_network: a :class:`~torchrl_reg.modules.FixedQuantileQActor`.
        kappa: half-width of the Huber loss's quadratic part, in reward units; 0 is the quantile loss itself. With
            ``kappa > 0`` the minimizers are not the quantiles, but drawn towards the mean.
        double_dqn: choose ``a*`` with the online network.
        delay_value, action_space, reduction, use_prioritized_weights: see :class:`QLearningLoss`.
        weight_reduction, diagnostics: see there.

    Returns (in a TensorDict): ``loss`` and detached scalars ``action_gap``, ``td_error`` (mean absolute difference of
    the means). The priority ``[*B, 1]`` is the row's quantile loss.

    Raises:
        ValueError: ``kappa`` < 0, a network that is not a FixedQuantileQActor.

    Source: Dabney et al., "Distributional Reinforcement Learning with Quantile Regression", AAAI 2018, eq. (10) and
    Algorithm 1.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import FixedQuantileQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, QuantileRegressionDQNLoss
    >>> actor = FixedQuantileQActor(torch.nn.Linear(4, 20 * 3), num_quantiles=20, spec=Categorical(3))
    >>> loss = QuantileRegressionDQNLoss(actor).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    head_type = FixedQuantiles


class IQNLoss(QLearningLoss):
    """Quantile Huber loss between ``z(s, a, sigma_i)`` and ``r + gamma z_target(s', a*, sigma'_j)``.

    ``a* = argmax_a mean_k z(s', a, sigma_k)`` with K fresh fractions of the target network (of the online network with
    ``double_dqn=True``). Summed over the N online fractions, averaged over the M target fractions.

    Args:
        value_network: a :class:`~torchrl_reg.modules.QuantileQActor`.
        num_quantiles: N, online fractions. num_target_quantiles: M. num_policy_quantiles: K.
        kappa: half-width of the Huber loss's quadratic part, in reward units.
        double_dqn: choose ``a*`` with the online network.
        reuse_quantiles: choose ``a*`` from the M target quantiles already drawn, instead of K fresh ones (faster).
        share_fractions: draw one set of fractions for the whole batch (faster: one embedding for all rows).
        delay_value, action_space, reduction, use_prioritized_weights: see :class:`QLearningLoss`.
        weight_reduction, diagnostics: see there.

    Returns (in a TensorDict): ``loss`` and detached scalars ``action_gap``, ``td_error`` (mean over rows of
    ``|mean_j target_j - mean_i z_i|``). The priority ``[*B, 1]`` is the row's quantile loss.

    Raises:
        ValueError: a count < 1, ``kappa`` < 0, or a network that is not a QuantileQActor.

    Source: Dabney et al., "Implicit Quantile Networks", ICML 2018, eq. (3) and Algorithm 1.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, IQNLoss
    >>> net = ImplicitQuantileNetwork(torch.nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> loss = IQNLoss(QuantileQActor(net, spec=Categorical(3))).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    head_type = ImplicitQuantiles


class MunchausenIQNLoss(MunchausenDQNLoss):
    """M-IQN: ``r + alpha [tau ln pi(a|s)]_{clip_min}^0 + gamma sum_a' pi(a'|s') (z_j(s', a') - tau ln pi(a'|s'))``.

    One policy ``pi = softmax(mean_k z(., ., sigma_k) / tau)`` from K fresh fractions of the target network, shared by
    all quantiles, at s and at s'. The network's features are computed once per state, for any number of fractions.

    Args:
        value_network: a :class:`~torchrl_reg.modules.QuantileQActor`.
        tau: temperature > 0, in reward units. Schedulable.
        alpha: Munchausen weight in [0, 1]. Schedulable.
        clip_min: lower clip (<= 0) of ``tau ln pi``, in reward units; None for no clip. Schedulable.
        num_quantiles, num_target_quantiles, num_policy_quantiles: N, M, K.
        reuse_quantiles: at s', take the policy from the M target quantiles already drawn (about 0.87 of the cost).
        kappa, share_fractions, delay_value, action_space, reduction: see :class:`IQNLoss`. There is no double variant:
            Double Q-learning with a Munchausen term is undefined.
        use_prioritized_weights, weight_reduction, diagnostics: see there.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (nats), ``action_gap``, ``kl`` (online to
    target policy at s), ``soft_gap``, ``bonus``, ``bonus_clipped`` (share of rows at the clip), ``td_error``, ``tau``.
    Writes the priority ``[*B, 1]``.

    Raises:
        ValueError: a coefficient or count out of range.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, section 4 and appendix; the
    released code uses 1-step targets, the paper's Atari results reportedly 3-step ones.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, MunchausenIQNLoss
    >>> net = ImplicitQuantileNetwork(torch.nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> loss = MunchausenIQNLoss(QuantileQActor(net, spec=Categorical(3)), tau=0.03, alpha=0.9)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["bonus"] <= 0)
    True
    """

    head_type = ImplicitQuantiles
