"""Munchausen IQN: quantile regression towards the Munchausen target."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_reg.functional import munchausen_bonus, scaled_log_policy
from torchrl_reg.modules import ImplicitQuantileNetwork, QuantileQActor
from torchrl_reg.objectives.bound_network import joined
from torchrl_reg.objectives.chosen import chosen_action_value
from torchrl_reg.objectives.diagnostics import bonus_diagnostics, soft_diagnostics
from torchrl_reg.objectives.iqn import IQNLoss


class MunchausenIQNLoss(IQNLoss):
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
        kappa, share_fractions, delay_value, action_space, reduction, use_prioritized_weights, diagnostics: see
            :class:`IQNLoss`. There is no double variant: Double Q-learning with a Munchausen term is undefined.

    Returns (in a TensorDict): ``loss`` and detached scalars ``entropy`` (nats), ``action_gap``, ``kl`` (online to
    target policy at s), ``soft_gap``, ``bonus``, ``bonus_clipped`` (share of rows at the clip), ``td_error``, ``tau``.

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

    tau: Tensor
    alpha: Tensor
    clip_min: Tensor
    _schedulable_buffers = frozenset({"tau", "alpha", "clip_min"})

    def __init__(
        self,
        value_network: QuantileQActor,
        *,
        tau: float = 0.03,
        alpha: float = 0.9,
        clip_min: float | None = -1.0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("double_dqn"):
            raise ValueError("double_dqn must be False: Double Q-learning with a Munchausen term is undefined.")
        super().__init__(value_network, tau=tau, alpha=alpha, clip_min=clip_min, **kwargs)

    def _quantile_target(
        self,
        tensordict: TensorDictBase,
        key: NestedKey,
        net: ImplicitQuantileNetwork,
        frozen: ImplicitQuantileNetwork,
        quantiles: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        observations = tensordict.get(key), tensordict.get(("next", key))
        exact = bool(tensordict.batch_dims) and not self._mixes_rows
        features, next_features = joined(frozen.features, observations, exact=exact)
        policy_fractions = self._fractions(features, self.num_policy_quantiles)
        q = self._allowed(frozen.quantiles(features, policy_fractions).mean(-2), tensordict)
        next_z, next_q = self._next_quantiles(frozen, next_features)
        next_q = self._allowed(next_q, tensordict.get("next"))

        action = tensordict.get(self.tensor_keys.action)
        log_policy = scaled_log_policy(q, self.tau)
        log_pi_a = chosen_action_value(log_policy, action, self.action_space)
        bonus = munchausen_bonus(log_pi_a, self.alpha, self.clip_min)
        log_pi = scaled_log_policy(next_q, self.tau).unsqueeze(-2)  # tau ln pi(.|s'), one for all quantiles
        pi = (log_pi / self.tau).exp()
        soft_z = (pi * (next_z - log_pi)).sum(-1)
        target = self._backup(tensordict, soft_z) + bonus.unsqueeze(-1)
        if not self.diagnostics:
            return target, {}
        online = self._allowed(quantiles.detach().mean(-2), tensordict)
        log_policies = torch.stack((log_policy, scaled_log_policy(online, self.tau)))
        rows = soft_diagnostics(online, log_policies, self.tau)
        return target, rows | bonus_diagnostics(log_pi_a, self.alpha, self.clip_min)
