"""Mutual-information regularized IQN: quantile regression towards the soft target with a prior."""

from __future__ import annotations

from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.objectives.prior_regularized import PriorRegularizedLoss


class MutualInformationIQNLoss(PriorRegularizedLoss):
    """MIRL over quantiles: ``r + gamma sum_a pi(a|s') (z_j(s', a) - (1/beta) ln (pi(a|s') / rho(a)))``.

    One policy ``pi ~ rho exp(beta mean_k z(., ., sigma_k))`` from K fresh fractions of the target network, shared by
    all quantiles, as in :class:`MunchausenIQNLoss`, with the prior in place of the uniform one. The mean of the target
    over quantiles is that of :class:`MutualInformationDQNLoss` if the policy reads the same quantiles.

    Args:
        value_network: a :class:`~torchrl_reg.modules.QuantileQActor`.
        prior, beta, prior_network: see :class:`MutualInformationDQNLoss`.
        num_quantiles, num_target_quantiles, num_policy_quantiles, reuse_quantiles, kappa, share_fractions, delay_value,
            action_space, reduction, use_prioritized_weights, diagnostics: see :class:`IQNLoss`. No double variant.

    Returns (in a TensorDict): as :class:`MutualInformationDQNLoss`; TD errors (reward units) are those of the means
    over quantiles. Writes the priority ``[*B, 1]``, the row's quantile loss.

    Raises:
        ValueError: a coefficient, count or prior out of range.

    Source: ours, after :class:`MunchausenIQNLoss` and Grau-Moya et al. 2019 (MIRL), who use the expected value.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, MutualInformationIQNLoss
    >>> net = ImplicitQuantileNetwork(torch.nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> loss = MutualInformationIQNLoss(QuantileQActor(net, spec=Categorical(3)), prior=[0.5, 0.25, 0.25], beta=2.0)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> bool(loss(data)["kl"] >= 0)
    True
    """

    head_type = ImplicitQuantiles
