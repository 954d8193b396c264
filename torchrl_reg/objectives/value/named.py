"""Value estimators over sequences, and those of named methods: :mod:`~torchrl_reg.objectives.value.estimator` with its
slots filled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchrl.objectives.utils import register_value_estimator

from torchrl_reg.objectives.shaping import Munchausen
from torchrl_reg.objectives.value.estimator import RegularizedTD0Estimator
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.regularizers import ActionPrior, Entropy, PriorKL

_DEFAULTS = {"gamma": 0.99, "differentiable": True}


@register_value_estimator(RegValueEstimators.REGULARIZED_TDLAMBDA, default_kwargs=_DEFAULTS | {"lmbda": 0.95})
class RegularizedTDLambdaEstimator(RegularizedTD0Estimator):
    """TD(lambda) on ``[*B, T]`` sequences with the regularizer's cost at every step.

    With the value ``V`` and the stored action's share of the cost ``c_t`` (``tau ln pi(a_t|s_t)`` for the entropy, 0
    for the maximum), the target is

        G_t = r_t + m_t + gamma ((1 - lambda) V(s_{t+1}) + lambda (G_{t+1} - c_{t+1}))

    where ``m_t`` is the shaping's bonus. ``lambda = 0`` is the one-step target, ``lambda = 1`` the (regularized) Monte
    Carlo return up to the end of the data. As in plain TD(lambda), ``done`` cuts the recursion and ``terminated`` drops
    the bootstrap; padding (the loss mask) cuts it, too. Policy and values are the target network's. There are no
    importance weights: data should be near on-policy.

    It needs the stored actions, so it refuses TorchRL's stock :class:`~torchrl.objectives.DQNLoss`. Everything is in
    reward units.

    Source: Sutton 1988 (TD(lambda)); ours for the cost of the stored actions, which is that of Nachum et al. 2017
    (PCL).

    Args:
        gamma, lmbda: discount and trace parameter in [0, 1].
        value_network, regularizer, shaping: see :class:`RegularizedTD0Estimator`.
    """

    needs_policy = True

    def __init__(self, *, lmbda: float | Tensor = 0.95, **kwargs: Any) -> None:
        super().__init__(lmbda=lmbda, **kwargs)


@register_value_estimator(RegValueEstimators.REGULARIZED_TD1, default_kwargs=_DEFAULTS)
class RegularizedTD1Estimator(RegularizedTDLambdaEstimator):
    """:class:`RegularizedTDLambdaEstimator` with ``lambda = 1``: returns to the end of the episode or of the data.

    ``G_t = r_t + m_t + gamma (G_{t+1} - c_{t+1})``, ``[*B, T, 1]`` in reward units.

    Source: Sutton 1988; the cost of the stored actions as in Nachum et al. 2017 (PCL).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(lmbda=1.0, **kwargs)


@register_value_estimator(RegValueEstimators.SOFT_TD0, default_kwargs=_DEFAULTS)
class SoftTD0Estimator(RegularizedTD0Estimator):
    """``r + gamma^n (1 - terminated) tau logsumexp(q(s', .) / tau)``: :class:`RegularizedTD0Estimator` with an entropy.

    The target is ``[*B, 1]``.

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        tau: temperature > 0 in reward units.

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

    def __init__(self, *, tau: float = 0.03, **kwargs: Any) -> None:
        super().__init__(regularizer=Entropy(tau), **kwargs)


@register_value_estimator(RegValueEstimators.MUNCHAUSEN_TD0, default_kwargs=_DEFAULTS)
class MunchausenTD0Estimator(RegularizedTD0Estimator):
    """``r + alpha [tau ln pi(a|s)]_{clip_min}^0 + gamma^n (1 - terminated) tau logsumexp(q(s', .) / tau)``.

    ``[*B, 1]``; ``pi = softmax(q / tau)`` and ``q`` come from the target network. Refuses TorchRL's stock
    :class:`~torchrl.objectives.DQNLoss`, which hides the stored action (see :meth:`for_loss`).

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        tau: temperature > 0 in reward units.
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

    def __init__(self, *, tau: float = 0.03, alpha: float = 0.9, clip_min: float | None = -1.0, **kwargs: Any) -> None:
        super().__init__(regularizer=Entropy(tau), shaping=Munchausen(alpha, clip_min), **kwargs)


@register_value_estimator(RegValueEstimators.PRIOR_SOFT_TD0, default_kwargs=_DEFAULTS)
class PriorSoftTD0Estimator(RegularizedTD0Estimator):
    """One-step target ``r + gamma^n (1 - terminated) (1/beta) ln sum_a rho(a) exp(beta q(s', a))``, ``[*B, 1]``.

    In reward units. Needs only the next state, so it also serves TorchRL's stock :class:`~torchrl.objectives.DQNLoss`.

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        prior: ``rho`` and ``beta``, shared, not copied; None is the uniform prior with ``beta = 1``.

    Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl.objectives import DQNLoss
    >>> from torchrl_reg.modules import ActionPrior
    >>> from torchrl_reg.objectives.value import PriorSoftTD0Estimator
    >>> loss = DQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> estimator = PriorSoftTD0Estimator.for_loss(loss, gamma=0.99, prior=ActionPrior(3, beta=2.0))
    >>> _ = loss.make_value_estimator(estimator)
    """

    def __init__(self, *, prior: ActionPrior | None = None, **kwargs: Any) -> None:
        super().__init__(regularizer=PriorKL(1.0) if prior is None else PriorKL(prior=prior), **kwargs)


@register_value_estimator(RegValueEstimators.SOFT_TDLAMBDA, default_kwargs=_DEFAULTS | {"lmbda": 0.95})
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

    def __init__(self, *, tau: float = 0.03, alpha: float = 0.0, clip_min: float | None = None, **kwargs: Any) -> None:
        super().__init__(regularizer=Entropy(tau), shaping=Munchausen(alpha, clip_min), **kwargs)
