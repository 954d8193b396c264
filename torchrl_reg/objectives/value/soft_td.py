"""Soft TD(0) and soft TD(lambda): backups of the entropy-regularized value."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import DQNLoss, LossModule
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import TD0Estimator, TDLambdaEstimator

from torchrl_reg.functional import munchausen_bonus
from torchrl_reg.objectives.value.one_step import one_step_return
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.regularized import RegularizedEstimator
from torchrl_reg.regularizers.checks import check_clip, check_temperature, check_weight


@register_value_estimator(RegValueEstimators.SOFT_TD0, default_kwargs={"gamma": 0.99, "differentiable": True})
class SoftTD0Estimator(RegularizedEstimator, TD0Estimator):
    """One-step target ``r + gamma^n (1 - terminated) tau logsumexp(q(s', .) / tau)``, ``[*B, 1]``.

    Needs only the next state, so it also serves TorchRL's stock :class:`~torchrl.objectives.DQNLoss`.

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        tau: temperature > 0 in reward units; None if every call passes it.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", ICML 2017, eq. (3).

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl.objectives import DQNLoss
    >>> from torchrl_reg.objectives.value import SoftTD0Estimator
    >>> loss = DQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> estimator = SoftTD0Estimator.for_loss(loss, gamma=0.99, tau=0.03)
    >>> _ = loss.make_value_estimator(estimator)
    """

    def __init__(
        self,
        *,
        gamma: float,
        value_network: TensorDictModuleBase,
        tau: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(gamma=gamma, value_network=value_network, **kwargs)
        self._register_coefficients(tau=None if tau is None else check_temperature(tau))

    @classmethod
    def _check_loss(cls, loss_module: LossModule, network: TensorDictModuleBase) -> None:
        refuse_double_dqn(cls, loss_module)

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        *,
        q: Tensor | None = None,
        next_q: Tensor | None = None,
        tau: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, 1]``; ``next_q [*B, A]`` saves the pass through the network, ``q`` is not needed."""
        if next_value is None:
            next_value = self._next_value(tensordict, target_params, {"next_q": next_q, "tau": tau})
        return one_step_return(tensordict, self.tensor_keys, self.gamma, next_value)


@register_value_estimator(
    RegValueEstimators.SOFT_TDLAMBDA,
    default_kwargs={"gamma": 0.99, "lmbda": 0.95, "differentiable": True},
)
class SoftTDLambdaEstimator(RegularizedEstimator, TDLambdaEstimator):
    """Entropy-regularized TD(lambda) on ``[*B, T]`` sequences, with the policy's log-probability at every step.

    With ``l_t = tau ln pi(a_t|s_t)`` and soft value ``V``, the target is ``G_t = r_t + m_t + gamma ((1 - lambda)
    V(s_{t+1}) + lambda (G_{t+1} - l_{t+1}))``, where ``m_t = alpha [l_t]_{clip_min}^0`` is the Munchausen term (0 by
    default). ``lambda = 0`` is soft TD(0) (M-DQN's target with ``alpha > 0``). As in plain TD(lambda), ``done`` cuts
    the recursion and ``terminated`` drops the bootstrap. ``pi = softmax(q / tau)`` of the target network.

    It needs the stored actions, so it refuses TorchRL's stock :class:`~torchrl.objectives.DQNLoss`. There are no
    importance weights: data should be near on-policy. As ``tau -> 0`` it does not become plain TD(lambda) on actions
    that are not greedy: ``l_t -> q(s, a_t) - max q``, and the trace is corrected by that gap.

    Args:
        gamma, lmbda: discount and trace parameter in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        tau: temperature > 0 in reward units; None if every call passes it.
        alpha, clip_min: Munchausen weight in [0, 1] and lower clip <= 0 (None: no clip).

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

    needs_policy = True
    _defaults = {**RegularizedEstimator._defaults, "lmbda": 0.95}

    def __init__(
        self,
        *,
        gamma: float,
        lmbda: float,
        value_network: TensorDictModuleBase,
        tau: float | None = None,
        alpha: float | None = 0.0,
        clip_min: float | None = None,
        **kwargs: Any,
    ) -> None:
        if lmbda == 0:  # TorchRL's vectorized kernel raises IndexError on a filter of one tap
            kwargs["vectorized"] = False
        super().__init__(gamma=gamma, lmbda=lmbda, value_network=value_network, **kwargs)
        self._register_coefficients(
            tau=None if tau is None else check_temperature(tau),
            alpha=None if alpha is None else check_weight(alpha),
            clip_min=check_clip(clip_min),
        )

    @classmethod
    def _check_loss(cls, loss_module: LossModule, network: TensorDictModuleBase) -> None:
        refuse_stock_dqn(cls, loss_module, network)

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        time_dim: int | None = None,
        *,
        q: Tensor | None = None,
        next_q: Tensor | None = None,
        tau: Tensor | float | None = None,
        alpha: Tensor | float | None = None,
        clip_min: Tensor | float | None = None,
        tau_log_pi: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, T, 1]``; ``q`` and ``next_q`` (``[*B, T, A]``, target network) save two passes.

        So do ``tau_log_pi [*B, T]``, ``tau ln pi`` of the stored actions, and ``next_value [*B, T, 1]``.
        """
        alpha = self._coefficient("alpha", alpha)
        if tau_log_pi is None:
            if q is None:
                q = self._q_values(tensordict, target_params)
            tau_log_pi = self._tau_log_pi(tensordict, q, tau)
        if next_value is None:
            next_value = self._next_value(tensordict, target_params, {"next_q": next_q, "tau": tau})
        bonus = munchausen_bonus(tau_log_pi, alpha, self._coefficient("clip_min", clip_min))
        # G_t - l_t follows TorchRL's own recursion with reward r_t + m_t - l_t, so its vectorized kernels serve.
        shaped = tensordict.copy()
        reward_key = ("next", self.tensor_keys.reward)
        reward = tensordict.get(reward_key)
        log_pi, bonus = tau_log_pi.unsqueeze(-1).to(reward.dtype), bonus.unsqueeze(-1).to(reward.dtype)
        shaped.set(reward_key, reward + bonus - log_pi)
        trace = super().value_estimate(shaped, next_value=next_value, time_dim=time_dim)
        return torch.add(trace, log_pi)


def refuse_double_dqn(cls: type, loss_module: LossModule) -> None:
    """Raise ValueError if ``loss_module`` would hand ``cls`` a value of its own making."""
    if getattr(loss_module, "double_dqn", False):
        raise ValueError(
            f"{cls.__name__} cannot serve a DQNLoss with double_dqn=True: that loss hands in the hard value of its "
            "own greedy action, and the soft value would never be used."
        )


def refuse_stock_dqn(cls: type, loss_module: LossModule, network: TensorDictModuleBase) -> None:
    """Raise ValueError if ``loss_module`` would hand ``cls`` another action than the stored one."""
    if isinstance(loss_module, DQNLoss) and loss_module.tensor_keys.action in network.out_keys:
        raise ValueError(
            f"{cls.__name__} needs the stored action, but TorchRL's DQNLoss overwrites it with its own greedy action "
            "before it calls the value estimator; use torchrl_reg.objectives.MunchausenDQNLoss instead."
        )
