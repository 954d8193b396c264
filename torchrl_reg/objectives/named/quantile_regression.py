"""Quantile regression DQN: the distribution of returns as quantiles at fixed fractions."""

from __future__ import annotations

from torchrl_reg.objectives.heads import FixedQuantiles
from torchrl_reg.objectives.q_learning import QLearningLoss


class QuantileRegressionDQNLoss(QLearningLoss):
    """QR-DQN: quantile Huber loss between ``theta_i(s, a)`` at ``(i + 1/2) / N`` and ``r + gamma theta_j(s', a*)``.

    ``a* = argmax_a mean_j theta_j(s', a)`` under the target network (the online one with ``double_dqn=True``). Summed
    over the N quantiles of the prediction, averaged over those of the target.

    Args:
        value_network: a :class:`~torchrl_reg.modules.FixedQuantileQActor`.
        kappa: half-width of the Huber loss's quadratic part, in reward units; 0 is the quantile loss itself. With
            ``kappa > 0`` the minimizers are not the quantiles, but drawn towards the mean.
        double_dqn: choose ``a*`` with the online network.
        delay_value, action_space, reduction, use_prioritized_weights, weight_reduction,
            diagnostics: see :class:`QLearningLoss`.

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
