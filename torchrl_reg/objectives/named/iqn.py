"""Implicit quantile networks: the distribution of returns, by quantile regression.

Shapes: ``*B`` batch, ``A`` actions, ``N`` online quantiles, ``M`` target quantiles, ``K`` policy quantiles.
"""

from __future__ import annotations

from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.objectives.q_learning import QLearningLoss


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
        delay_value, action_space, reduction, use_prioritized_weights, weight_reduction,
            diagnostics: see :class:`QLearningLoss`.

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
