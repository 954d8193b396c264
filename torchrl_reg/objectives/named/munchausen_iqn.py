"""Munchausen IQN: quantile regression towards the Munchausen target."""

from __future__ import annotations

from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.objectives.named.munchausen_dqn import MunchausenDQNLoss


class MunchausenIQNLoss(MunchausenDQNLoss):
    """M-IQN: ``r + alpha [tau ln pi(a|s)]_{clip_min}^0 + gamma sum_a' pi(a'|s') (z_j(s', a') - tau ln pi(a'|s'))``.

    One policy ``pi = softmax(mean_k z(., ., sigma_k) / tau)`` from K fresh fractions of the target network, shared by
    all quantiles, at s and at s'. The network's features are computed once per state, whatever the number of fractions.

    Args:
        value_network: a :class:`~torchrl_reg.modules.QuantileQActor`.
        tau: temperature > 0, in reward units. Schedulable.
        alpha: Munchausen weight in [0, 1]. Schedulable.
        clip_min: lower clip (<= 0) of ``tau ln pi``, in reward units; None for no clip. Schedulable.
        num_quantiles, num_target_quantiles, num_policy_quantiles: N, M, K.
        reuse_quantiles: at s', take the policy from the M target quantiles already drawn (about 0.87 of the cost).
        kappa, share_fractions, delay_value, action_space, reduction, use_prioritized_weights, weight_reduction,
            diagnostics: see
            :class:`IQNLoss`. There is no double variant: Double Q-learning with a Munchausen term is undefined.

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
