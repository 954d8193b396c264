"""Lambda-returns with any regularizer and shaping, over sequences."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import TDLambdaEstimator

from torchrl_reg.objectives.shaping import Munchausen
from torchrl_reg.objectives.value.one_step import check_single_steps, done_flag, terminated_flag
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.regularized import RegularizedEstimator
from torchrl_reg.regularizers import Entropy
from torchrl_reg.torchrl_compat import entry

_DEFAULTS = {"gamma": 0.99, "lmbda": 0.95, "differentiable": True}


@register_value_estimator(RegValueEstimators.REGULARIZED_TDLAMBDA, default_kwargs=_DEFAULTS)
class RegularizedTDLambdaEstimator(RegularizedEstimator, TDLambdaEstimator):
    """TD(lambda) on ``[*B, T]`` sequences with the regularizer's cost at every step.

    With the value ``V`` and the stored action's share of the cost ``c_t`` (``tau ln pi(a_t|s_t)`` for the entropy, 0
    for the maximum), the target is

        G_t = r_t + m_t + gamma ((1 - lambda) V(s_{t+1}) + lambda (G_{t+1} - c_{t+1}))

    where ``m_t`` is the shaping's bonus. ``lambda = 0`` is the one-step target, ``lambda = 1`` the (regularized) Monte
    Carlo return up to the end of the data. As in plain TD(lambda), ``done`` cuts the recursion and ``terminated`` drops
    the bootstrap; a masked step cuts it as the end of the data does, so padding enters no return. Policy and values are
    the target network's. There are no importance weights: data should be near on-policy.

    It needs the stored actions, so it refuses TorchRL's stock :class:`~torchrl.objectives.DQNLoss`. Everything is in
    reward units.

    Source: Sutton 1988 (TD(lambda)); ours for the cost of the stored actions, which is that of Nachum et al. 2017
    (PCL).

    Args:
        gamma, lmbda: discount and trace parameter in [0, 1].
        value_network, regularizer, shaping: see :class:`RegularizedEstimator`.
    """

    needs_policy = True
    _defaults = {"gamma": 0.99, "lmbda": 0.95}

    def __init__(self, *, lmbda: float, **kwargs: Any) -> None:
        super().__init__(lmbda=lmbda, **kwargs)
        # TorchRL's vectorized kernel raises IndexError on a filter of one tap; its loop lets NaN of padded steps pass.
        self._one_step = float(lmbda) == 0

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        time_dim: int | None = None,
        *,
        bonus: Tensor | None = None,
        action_cost: Tensor | None = None,
        q: Tensor | None = None,
        next_q: Tensor | None = None,
        mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, T, 1]``; ``q`` and ``next_q`` (``[*B, T, A]``, target network) save two passes.

        A loss hands in ``next_value [*B, T, M]``, the ``action_cost [*B, T]`` of the stored actions, its ``bonus``, and
        the ``mask [*B, T]`` of the steps that count; by itself, the estimator reads ``("collector", "mask")``.
        """
        if next_value is None:
            next_value = self._next_value(tensordict, target_params, {"next_q": next_q})
            bonus, action_cost = self._at_root(tensordict, target_params, q, next_q)
            mask = entry(tensordict, ("collector", "mask"))
        assert action_cost is not None
        check_single_steps(tensordict, self.tensor_keys, "a lambda-return")
        if self._one_step:
            return self._one_step_target(tensordict, next_value, bonus)
        # G_t - c_t follows TorchRL's own recursion with reward r_t + m_t - c_t, so its vectorized kernels can be used.
        keys = self.tensor_keys
        reward = tensordict.get(("next", keys.reward))
        cost = action_cost.unsqueeze(-1).to(reward.dtype)
        added = reward - cost if bonus is None else reward + bonus.unsqueeze(-1).to(reward.dtype) - cost
        done, terminated = done_flag(tensordict, keys), terminated_flag(tensordict, keys)
        # A fill, not the product TorchRL makes: what follows a terminal state may be NaN, and so may padding.
        next_value = next_value.masked_fill(terminated, 0.0).to(reward.dtype)
        if mask is not None:
            mask = mask.reshape(done.shape)
            done = done | ~mask.roll(-1, self._get_time_dim(time_dim, tensordict))
            added, next_value = added.masked_fill(~mask, 0.0), next_value.masked_fill(~mask, 0.0)
        shaped = tensordict.copy()
        for key, value in ((keys.reward, added), (keys.done, done), (keys.terminated, terminated)):
            shaped.set(("next", key), value.expand_as(next_value))
        trace = super().value_estimate(shaped, next_value=next_value, time_dim=time_dim)
        return torch.add(trace, cost)


@register_value_estimator(RegValueEstimators.REGULARIZED_TD1, default_kwargs={"gamma": 0.99, "differentiable": True})
class RegularizedTD1Estimator(RegularizedTDLambdaEstimator):
    """:class:`RegularizedTDLambdaEstimator` with ``lambda = 1``: returns to the end of the episode or of the data.

    ``G_t = r_t + m_t + gamma (G_{t+1} - c_{t+1})``, ``[*B, T, 1]`` in reward units.

    Source: Sutton 1988; the cost of the stored actions as in Nachum et al. 2017 (PCL).
    """

    _defaults = {"gamma": 0.99}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(lmbda=1.0, **kwargs)


@register_value_estimator(RegValueEstimators.SOFT_TDLAMBDA, default_kwargs=_DEFAULTS)
class SoftTDLambdaEstimator(RegularizedTDLambdaEstimator):
    """Entropy-regularized TD(lambda): :class:`RegularizedTDLambdaEstimator` with an entropy and a Munchausen term.

    With ``l_t = tau ln pi(a_t|s_t)``: ``G_t = r_t + alpha [l_t]_{clip_min}^0 + gamma ((1 - lambda) V(s_{t+1}) + lambda
    (G_{t+1} - l_{t+1}))``. ``lambda = 0`` is soft TD(0) (M-DQN's target with ``alpha > 0``). As ``tau -> 0`` it does
    not become plain TD(lambda) on actions that are not greedy: ``l_t -> q(s, a_t) - max q``, and the trace is corrected
    by that gap. Targets are ``[*B, T, 1]``.

    Source: Nachum et al. 2017 (PCL) for the traces, Vieillard et al. 2020 (Munchausen RL) for the bonus.

    Args:
        gamma, lmbda: discount and trace parameter in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        tau: temperature > 0 in reward units.
        alpha, clip_min: Munchausen weight in [0, 1], 0 for no bonus, and lower clip <= 0 (None: no clip).

    Raises:
        ValueError: a coefficient out of range.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import MunchausenDQNLoss
    >>> loss = MunchausenDQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), alpha=0.5)
    >>> type(loss.make_value_estimator("soft_tdlambda", gamma=0.9, lmbda=0.8).value_estimator).__name__
    'SoftTDLambdaEstimator'
    """

    def __init__(
        self,
        *,
        gamma: float,
        lmbda: float,
        value_network: TensorDictModuleBase,
        tau: float = 0.03,
        alpha: float = 0.0,
        clip_min: float | None = None,
        **kwargs: Any,
    ) -> None:
        slots: dict[str, Any] = {"regularizer": Entropy(tau), "shaping": Munchausen(alpha, clip_min)}
        super().__init__(gamma=gamma, lmbda=lmbda, value_network=value_network, **slots, **kwargs)
