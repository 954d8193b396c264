"""What the regularized value estimators share: a regularizer, a shaping, keys, and how they read Q-values.

Shapes: ``*B`` batch (``[*B, T]`` for TD(lambda)), ``A`` actions, ``M`` values of a head (1 for an expected value).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import DQNLoss, LossModule
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_reg.objectives.bound_network import action_values
from torchrl_reg.objectives.chosen import action_index, at
from torchrl_reg.objectives.shaping import Shaping
from torchrl_reg.objectives.value.one_step import one_step_return, terminated_flag
from torchrl_reg.regularizers import HardMax, Regularizer
from torchrl_reg.torchrl_compat import find_action_space


class RegularizedEstimator(ValueEstimatorBase):
    """Mixin before a TorchRL estimator: a Q-network in, regularized targets out.

    Build it with ``Estimator.for_loss(loss, gamma=...)`` and hand it to ``loss.make_value_estimator``. A loss of this
    package shares its regularizer and shaping with it, and hands in the values it has computed.

    Args:
        value_network: a TensorDict Q-network.
        regularizer: slot 1; None is :class:`~torchrl_reg.regularizers.HardMax`.
        shaping: slot 2; None adds nothing to the reward.
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
    #: Whether the target reads the policy at s whatever the shaping.
    needs_policy: ClassVar[bool] = False
    #: What :meth:`for_loss` uses where nothing is given.
    _defaults: ClassVar[dict[str, float]] = {"gamma": 0.99}

    def __init__(
        self,
        *,
        value_network: TensorDictModuleBase,
        regularizer: Regularizer | None = None,
        shaping: Shaping | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(value_network=value_network, **kwargs)
        self.regularizer = HardMax() if regularizer is None else regularizer
        self.shaping = shaping

    @classmethod
    def for_loss(cls, loss_module: LossModule, **hyperparams: Any) -> RegularizedEstimator:
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
        hyperparams = {**cls._defaults, "device": loss_module._default_device, **hyperparams}
        estimator = cls(value_network=network, **hyperparams)
        if isinstance(getattr(loss_module, "regularizer", None), Regularizer):
            estimator._share(loss_module)
        estimator._check_loss(loss_module, network)
        estimator.action_space = find_action_space(loss_module.action_space)
        keys = loss_module.tensor_keys
        names = [n for n in cls._AcceptedKeys.__dataclass_fields__ if hasattr(keys, n)]
        estimator.set_keys(**{n: getattr(keys, n) for n in names})
        return estimator

    def _share(self, loss_module: Any) -> None:
        """Use the loss's own regularizer and shaping; not as submodules, which would save them twice."""
        for name in ("regularizer", "shaping"):
            self._modules.pop(name, None)
            self.__dict__[name] = getattr(loss_module, name)

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

    def set_keys(self, **kwargs: Any) -> None:
        """As in TorchRL, but a ``value`` that the network does not write is no error: the Q-values are read instead."""
        value = kwargs.pop("value", None)
        super().set_keys(**kwargs)
        if value is not None:
            self.tensor_keys.value = value

    # -- what a target is made of -------------------------------------------------------------------------------

    def _q_values(self, tensordict: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        return action_values(self.value_network, tensordict, params, self.tensor_keys.action_value)

    def _next_value(self, tensordict: TensorDictBase, target_params: TensorDictBase | None, kwargs: Any) -> Tensor:
        next_q = kwargs.get("next_q")
        if next_q is None:
            next_q = self._q_values(tensordict.get("next"), target_params)
        return self.regularizer.value_and_log_policy(next_q)[0].unsqueeze(-1)

    def _at_root(
        self, tensordict: TensorDictBase, params: TensorDictBase | None, q: Tensor | None, next_q: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The bonus ``[*B]`` and the stored action's share of the cost ``[*B]``, where they are needed."""
        if self.shaping is None and not self.needs_policy:
            return None, None
        q = self._q_values(tensordict, params) if q is None else q
        _, tau_log_pi = self.regularizer.value_and_log_policy(q)
        index = action_index(tensordict.get(self.tensor_keys.action), self.action_space, q.ndim - 1)
        bonus = None
        if self.shaping is not None:
            following = self._q_values(tensordict.get("next"), params) if next_q is None else next_q
            terminated = terminated_flag(tensordict, self.tensor_keys).squeeze(-1)
            bonus = self.shaping(q, tau_log_pi, index, next_q=following, terminated=terminated)
        return bonus, at(self.regularizer.step_cost(tau_log_pi), index)

    def _one_step_target(self, tensordict: TensorDictBase, next_value: Tensor, bonus: Tensor | None) -> Tensor:
        target = one_step_return(tensordict, self.tensor_keys, self.gamma, next_value)  # type: ignore[arg-type]
        return target if bonus is None else target + bonus.unsqueeze(-1).to(target.dtype)

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
