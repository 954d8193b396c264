"""Munchausen TD(0): the soft one-step target plus the scaled log-policy of the stored action."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import LossModule
from torchrl.objectives.utils import register_value_estimator

from torchrl_reg.functional import munchausen_bonus
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.soft_td import SoftTD0Estimator, refuse_stock_dqn
from torchrl_reg.regularizers.checks import check_clip, check_weight


@register_value_estimator(RegValueEstimators.MUNCHAUSEN_TD0, default_kwargs={"gamma": 0.99, "differentiable": True})
class MunchausenTD0Estimator(SoftTD0Estimator):
    """``r + alpha [tau ln pi(a|s)]_{clip_min}^0 + gamma^n (1 - terminated) tau logsumexp(q(s', .) / tau)``.

    ``pi = softmax(q / tau)`` and ``q`` come from the target network. Refuses TorchRL's stock
    :class:`~torchrl.objectives.DQNLoss`, which hides the stored action (see :meth:`for_loss`).

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        tau: temperature > 0 in reward units; None if every call passes it.
        alpha: Munchausen weight in [0, 1].
        clip_min: lower clip <= 0 of ``tau ln pi`` in reward units; None for no clip.

    Raises:
        ValueError: a coefficient out of range.

    Source: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020, eq. (2).

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import MunchausenDQNLoss
    >>> loss = MunchausenDQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), alpha=0.5)
    >>> type(loss.make_value_estimator("munchausen_td0", gamma=0.9).value_estimator).__name__
    'MunchausenTD0Estimator'
    """

    def __init__(
        self,
        *,
        gamma: float,
        value_network: TensorDictModuleBase,
        tau: float | None = None,
        alpha: float | None = 0.9,
        clip_min: float | None = -1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(gamma=gamma, value_network=value_network, tau=tau, **kwargs)
        self._register_coefficients(alpha=None if alpha is None else check_weight(alpha), clip_min=check_clip(clip_min))

    @classmethod
    def _check_loss(cls, loss_module: LossModule, network: TensorDictModuleBase) -> None:
        refuse_stock_dqn(cls, loss_module, network)

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        *,
        q: Tensor | None = None,
        next_q: Tensor | None = None,
        tau: Tensor | float | None = None,
        alpha: Tensor | float | None = None,
        clip_min: Tensor | float | None = None,
        tau_log_pi: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, 1]``; ``q`` and ``next_q`` (``[*B, A]``, target network) save two passes.

        So do ``tau_log_pi [*B]``, ``tau ln pi`` of the stored actions, and ``next_value [*B, 1]``, the soft value.
        """
        if tau_log_pi is None:
            if q is None:
                q = self._q_values(tensordict, target_params)
            tau_log_pi = self._tau_log_pi(tensordict, q, tau)
        bonus = munchausen_bonus(tau_log_pi, self._coefficient("alpha", alpha), self._coefficient("clip_min", clip_min))
        soft = super().value_estimate(tensordict, target_params, next_value, next_q=next_q, tau=tau, **kwargs)
        return soft + bonus.unsqueeze(-1).to(soft.dtype)
