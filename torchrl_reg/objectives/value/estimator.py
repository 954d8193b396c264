"""Value estimators with a regularizer and a shaping, for TorchRL's losses and for those of this package.

Shapes: ``*B`` batch (``[*B, T]`` for lambda-returns), ``A`` actions, ``M`` values of a head (1 for an expected value).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import DQNLoss, LossModule
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_reg.functional.munchausen import action_index, taken
from torchrl_reg.functional.returns import lambda_return
from torchrl_reg.objectives.binding import action_values
from torchrl_reg.objectives.shaping import Shaping
from torchrl_reg.objectives.value.registry import RegValueEstimators
from torchrl_reg.regularizers import HardMax, Regularizer
from torchrl_reg.regularizers.checks import exact_scalar
from torchrl_reg.torchrl_compat import entry, find_action_space


def terminated_flag(tensordict: TensorDictBase, keys: Any) -> Tensor:
    """Whether s' is terminal, ``[*B, 1]``; ``done`` where the data do not tell termination from truncation."""
    terminated = entry(tensordict, ("next", keys.terminated))
    return tensordict.get(("next", keys.done)) if terminated is None else terminated


def done_flag(tensordict: TensorDictBase, keys: Any) -> Tensor:
    """Whether the episode ends with s', ``[*B, 1]``; ``terminated`` where the data do not say more."""
    done = entry(tensordict, ("next", keys.done))
    return tensordict.get(("next", keys.terminated)) if done is None else done


def check_single_steps(tensordict: TensorDictBase, keys: Any, what: str) -> None:
    """Refuse n-step transitions where ``what`` is made of single ones."""
    if entry(tensordict, keys.steps_to_next_obs) is not None:
        raise ValueError(
            f"data must hold single steps for {what}, got n-step transitions (they have an entry "
            f"{keys.steps_to_next_obs!r})."
        )


def regularized_target(
    tensordict: TensorDictBase,
    keys: Any,
    next_value: Tensor,
    *,
    gamma: Tensor,
    lmbda: Tensor | None = None,
    bonus: Tensor | None = None,
    action_cost: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``r + bonus + gamma^n (1 - terminated) next_value``, or with ``lmbda`` the lambda-return; like ``next_value``.

    ``n`` is 1, or ``steps_to_next_obs`` where the data have it (TorchRL's MultiStep). A lambda-return bootstraps where
    an episode is truncated, where the data end and where padding begins.

    Args:
        tensordict: the data; ``keys`` names its entries.
        next_value: ``V(s') [*B, M]``. bonus: of the shaping ``[*B]``. All in reward units.
        action_cost: the stored action's share of the regularizer ``[*B]``, for lambda-returns.
        mask: the rows ``[*B]`` that count, for lambda-returns; None: all.

    Raises:
        RuntimeError: the reward is not ``[*B, 1]``.
        ValueError: n-step transitions for a lambda-return.
    """
    reward, terminated = entry(tensordict, ("next", keys.reward)), terminated_flag(tensordict, keys)
    if not reward.shape == terminated.shape == (*next_value.shape[:-1], 1):
        raise RuntimeError(
            f"reward and terminated must have shape {(*next_value.shape[:-1], 1)}, got {tuple(reward.shape)} and "
            f"{tuple(terminated.shape)}."
        )
    # A fill, not a product as in TorchRL: what follows a terminal state, NaN included, must not reach the target.
    next_value = next_value.masked_fill(terminated, 0.0)
    if lmbda is None:
        steps = entry(tensordict, keys.steps_to_next_obs)
        if steps is not None:
            gamma = (gamma ** steps.view_as(reward)).to(reward.dtype)
        target = reward + gamma * next_value
        return target if bonus is None else target + bonus.unsqueeze(-1).to(target.dtype)
    check_single_steps(tensordict, keys, "a lambda-return")
    if bonus is not None:
        reward = reward + bonus.unsqueeze(-1).to(reward.dtype)
    ends = done_flag(tensordict, keys) | terminated
    if mask is not None:  # the last step before padding ends its sequence, as a truncation does
        mask = mask.reshape(ends.shape)
        ends = ends | ~mask.roll(-1, -2)
        reward, next_value = reward.masked_fill(~mask, 0.0), next_value.masked_fill(~mask, 0.0)
    cost = None if action_cost is None else action_cost.unsqueeze(-1).to(reward.dtype)
    return lambda_return(reward, next_value.to(reward.dtype), ends, gamma=gamma, lmbda=lmbda, action_cost=cost)


@register_value_estimator(RegValueEstimators.REGULARIZED_TD0, default_kwargs={"gamma": 0.99, "differentiable": True})
class RegularizedTD0Estimator(ValueEstimatorBase):
    """``r + bonus + gamma^n (1 - terminated) (<pi, q(s', .)> - Omega(pi))``, ``[*B, 1]``, or ``[*B, M]`` for a head.

    In reward units. ``n`` is 1, or ``steps_to_next_obs`` where the data have it. ``pi``, ``Omega`` and the bonus come
    from the target network. Without a shaping it needs only the next state, so it also serves TorchRL's stock
    :class:`~torchrl.objectives.DQNLoss`. Build it with ``Estimator.for_loss(loss, gamma=...)`` and hand it to
    ``loss.make_value_estimator``. A loss of this package shares its regularizer and shaping with it.

    Source: Geist et al. 2019 (A theory of regularized MDPs), the regularized Bellman operator.

    Args:
        gamma: discount in [0, 1].
        value_network: a TensorDict Q-network; :meth:`for_loss` takes the loss's.
        regularizer: slot 1; None is :class:`~torchrl_reg.regularizers.HardMax`.
        shaping: slot 2; None adds nothing to the reward.
        lmbda: trace parameter in [0, 1] of a lambda-return (:class:`RegularizedTDLambdaEstimator`); None: one step.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl.objectives import DQNLoss
    >>> from torchrl_reg.regularizers import Entropy
    >>> loss = DQNLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)))
    >>> estimator = RegularizedTD0Estimator.for_loss(loss, gamma=0.99, regularizer=Entropy(0.03))
    >>> _ = loss.make_value_estimator(estimator)
    """

    # ValueEstimatorBase.set_keys looks in this class's own __dict__: inherited fields would be refused.
    @dataclass
    class _AcceptedKeys:
        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "chosen_action_value"
        action_value: NestedKey = "action_value"
        action: NestedKey = "action"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        steps_to_next_obs: NestedKey = "steps_to_next_obs"
        sample_log_prob: NestedKey = "sample_log_prob"

    default_keys = _AcceptedKeys  # type: ignore[assignment]
    action_space: str = "categorical"
    #: Whether targets are made once per rollout, by calling the estimator, and a loss reads them from its minibatches.
    precomputed: ClassVar[bool] = False
    #: Whether the target reads the policy at s whatever the shaping.
    needs_policy: ClassVar[bool] = False
    gamma: Tensor
    lmbda: Tensor | None

    def __init__(
        self,
        *,
        gamma: float | Tensor = 0.99,
        lmbda: float | Tensor | None = None,
        value_network: TensorDictModuleBase,
        regularizer: Regularizer | None = None,
        shaping: Shaping | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(value_network=value_network, **kwargs)
        # In float64: a float32 gamma of 0.9 is wrong by 1e-8.
        self.register_buffer("gamma", exact_scalar(float(gamma), self._device))
        self.register_buffer("lmbda", None if lmbda is None else exact_scalar(float(lmbda), self._device))
        self.regularizer = HardMax() if regularizer is None else regularizer
        self.shaping = shaping

    @classmethod
    def for_loss(cls, loss_module: LossModule, **hyperparams: Any) -> RegularizedTD0Estimator:
        """An estimator wired to the value network, keys, action space and device of ``loss_module``.

        Raises:
            ValueError: the loss has no Q-network, hides the stored action that this estimator needs, or makes its own
                next value.
        """
        network = hyperparams.pop("value_network", None) or getattr(loss_module, "value_network", None)
        if network is None:
            raise ValueError(
                f"{cls.__name__} needs a loss with a value_network that writes Q-values, got "
                f"{type(loss_module).__name__}."
            )
        estimator = cls(value_network=network, **{"device": loss_module._default_device, **hyperparams})
        if isinstance(getattr(loss_module, "regularizer", None), Regularizer):
            for name in ("regularizer", "shaping"):  # not as submodules, which would save them twice
                estimator._modules.pop(name, None)
                estimator.__dict__[name] = getattr(loss_module, name)
        estimator._check_loss(loss_module, network)
        estimator.action_space = find_action_space(loss_module.action_space)
        keys = loss_module.tensor_keys
        names = [n for n in cls._AcceptedKeys.__dataclass_fields__ if hasattr(keys, n)]
        estimator.set_keys(**{n: getattr(keys, n) for n in names})
        return estimator

    def _check_loss(self, loss_module: LossModule, network: TensorDictModuleBase) -> None:
        """Refuse a loss with which this estimator would be silently wrong."""
        if not isinstance(loss_module, DQNLoss):
            return
        if loss_module.double_dqn:
            raise ValueError(
                f"{type(self).__name__} needs a DQNLoss without Double Q-learning, got double_dqn=True: that hands in "
                "the hard value of its own greedy action, and the regularized value would never be used."
            )
        reads_action = self.shaping is not None or self.needs_policy
        if reads_action and loss_module.tensor_keys.action in network.out_keys:
            raise ValueError(
                f"{type(self).__name__} needs the stored action, got TorchRL's DQNLoss, which overwrites it with its "
                "own greedy action before it calls the value estimator; use torchrl_reg.objectives.QLearningLoss."
            )

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        *,
        bonus: Tensor | None = None,
        action_cost: Tensor | None = None,
        mask: Tensor | None = None,
        q: Tensor | None = None,
        next_q: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The target ``[*B, 1]``; ``q`` and ``next_q`` (``[*B, A]``, target network) save two passes.

        A loss hands in ``next_value [*B, M]``, the ``bonus`` and ``action_cost`` ``[*B]``, and the ``mask [*B]``; by
        itself, the estimator reads ``("collector", "mask")``.
        """
        if next_value is None:
            next_q = self._q_values(tensordict.get("next"), target_params) if next_q is None else next_q
            next_value = self.regularizer.value_and_log_policy(next_q)[0].unsqueeze(-1)
            bonus, action_cost = self._at_s(tensordict, target_params, q, next_q)
            mask = entry(tensordict, ("collector", "mask"))
        parts: dict[str, Any] = {"bonus": bonus, "action_cost": action_cost, "mask": mask}
        return regularized_target(tensordict, self.tensor_keys, next_value, gamma=self.gamma, lmbda=self.lmbda, **parts)

    def set_keys(self, **kwargs: Any) -> None:
        """As in TorchRL, but a ``value`` that the network does not write is no error: the Q-values are read instead."""
        value = kwargs.pop("value", None)
        super().set_keys(**kwargs)
        if value is not None:
            self.tensor_keys.value = value

    def _q_values(self, tensordict: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        return action_values(self.value_network, tensordict, params, self.tensor_keys.action_value)

    def _at_s(
        self, tensordict: TensorDictBase, params: TensorDictBase | None, q: Tensor | None, next_q: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """The bonus ``[*B]`` and the stored action's share of the cost ``[*B]``, where they are needed."""
        if self.shaping is None and not self.needs_policy:
            return None, None
        q = self._q_values(tensordict, params) if q is None else q
        _, tau_log_pi = self.regularizer.value_and_log_policy(q)
        index = action_index(tensordict.get(self.tensor_keys.action), self.action_space, q.ndim - 1)
        bonus = None
        if self.shaping is not None:
            terminated = terminated_flag(tensordict, self.tensor_keys).squeeze(-1)
            bonus = self.shaping(q, tau_log_pi, index, next_q=next_q, terminated=terminated)
        return bonus, taken(self.regularizer.step_cost(tau_log_pi), index)

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write ``value_target`` and ``advantage = value_target - regularized value``, each ``[*B, 1]``."""
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            value, _ = self.regularizer.value_and_log_policy(self._q_values(tensordict, params))
            target = self.value_estimate(tensordict, target_params=params if target_params is None else target_params)
        tensordict.set(self.tensor_keys.advantage, target - value.unsqueeze(-1))
        tensordict.set(self.tensor_keys.value_target, target)
        return tensordict
