"""One-step and n-step targets with any regularizer and shaping, and their named forms."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import TD0Estimator

from torchrl_reg.objectives.shaping import Munchausen
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.objectives.value.regularized import RegularizedEstimator
from torchrl_reg.regularizers import ActionPrior, Entropy, PriorKL

_DEFAULTS = {"gamma": 0.99, "differentiable": True}


@register_value_estimator(RegValueEstimators.REGULARIZED_TD0, default_kwargs=_DEFAULTS)
class RegularizedTD0Estimator(RegularizedEstimator, TD0Estimator):
    """``r + bonus + gamma^n (1 - terminated) (<pi, q(s', .)> - Omega(pi))``, ``[*B, 1]``, or ``[*B, M]`` for a head.

    In reward units. ``n`` is 1, or ``steps_to_next_obs`` where the data have it. ``pi``, ``Omega`` and the bonus come
    from the target network. Without a shaping it needs only the next state, so it also serves TorchRL's stock
    :class:`~torchrl.objectives.DQNLoss`.

    Source: Geist et al. 2019 (A theory of regularized MDPs), the regularized Bellman operator.

    Args:
        gamma: discount in [0, 1].
        value_network, regularizer, shaping: see :class:`RegularizedEstimator`.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl.objectives import DQNLoss
    >>> from torchrl_reg.regularizers import Entropy
    >>> loss = DQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> estimator = RegularizedTD0Estimator.for_loss(loss, gamma=0.99, regularizer=Entropy(0.03))
    >>> _ = loss.make_value_estimator(estimator)
    """

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        *,
        bonus: Tensor | None = None,
        q: Tensor | None = None,
        next_q: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, 1]``; ``q`` and ``next_q`` (``[*B, A]``, target network) save two passes.

        A loss hands in ``next_value [*B, M]`` and, if it shapes the reward, the ``bonus [*B]``.
        """
        if next_value is None:
            next_value = self._next_value(tensordict, target_params, {"next_q": next_q})
            bonus, _ = self._at_root(tensordict, target_params, q, next_q)
        return self._one_step_target(tensordict, next_value, bonus)


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

    def __init__(self, *, gamma: float, value_network: TensorDictModuleBase, tau: float = 0.03, **kwargs: Any) -> None:
        super().__init__(gamma=gamma, value_network=value_network, regularizer=Entropy(tau), **kwargs)


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

    def __init__(
        self,
        *,
        gamma: float,
        value_network: TensorDictModuleBase,
        tau: float = 0.03,
        alpha: float = 0.9,
        clip_min: float | None = -1.0,
        **kwargs: Any,
    ) -> None:
        slots: dict[str, Any] = {"regularizer": Entropy(tau), "shaping": Munchausen(alpha, clip_min)}
        super().__init__(gamma=gamma, value_network=value_network, **slots, **kwargs)


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

    def __init__(
        self, *, gamma: float, value_network: TensorDictModuleBase, prior: ActionPrior | None = None, **kwargs: Any
    ) -> None:
        regularizer = PriorKL(1.0) if prior is None else PriorKL(prior=prior)
        super().__init__(gamma=gamma, value_network=value_network, regularizer=regularizer, **kwargs)
