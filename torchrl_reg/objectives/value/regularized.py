"""What the regularized value estimators share: keys, coefficients, how they read Q-values.

Shapes: ``*B`` batch (``[*B, T]`` for TD(lambda)), ``A`` actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import LossModule
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_reg.functional import scaled_log_policy, soft_value
from torchrl_reg.objectives.bound_network import action_values
from torchrl_reg.objectives.chosen import chosen_action_value
from torchrl_reg.regularizers.checks import exact_scalar
from torchrl_reg.torchrl_compat import find_action_space


class RegularizedEstimator(ValueEstimatorBase):
    """Mixin before a TorchRL estimator: a Q-network in, regularized targets out.

    Build it with ``Estimator.for_loss(loss, gamma=..., tau=...)`` and hand it to ``loss.make_value_estimator``.
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

    def _register_coefficients(self, **coefficients: float | None) -> None:
        # None: whoever calls value_estimate passes it (a loss that owns the coefficient does).
        for name, value in coefficients.items():
            buffer = None if value is None else exact_scalar(value, self._device)
            self.register_buffer(name, buffer)

    def _coefficient(self, name: str, given: Tensor | float | None) -> Tensor | float:
        value = getattr(self, name) if given is None else given
        if value is None:
            raise ValueError(
                f"{name} must be given to {type(self).__name__}, in the constructor or to value_estimate, got None."
            )
        return value

    @classmethod
    def for_loss(cls, loss_module: LossModule, **hyperparams: Any) -> RegularizedEstimator:
        """An estimator wired to the value network, keys, action space and device of ``loss_module``.

        Raises:
            ValueError: the loss has no Q-network, or hides the stored action that this estimator needs.
        """
        network = hyperparams.pop("value_network", None) or getattr(loss_module, "value_network", None)
        if network is None:
            raise ValueError(
                f"{cls.__name__} needs a loss with a value_network that writes Q-values, got "
                f"{type(loss_module).__name__}."
            )
        cls._check_loss(loss_module, network)
        hyperparams = {**cls._defaults, "device": loss_module._default_device, **hyperparams}
        estimator = cls(value_network=network, **hyperparams)
        for name in ("tau", "alpha", "clip_min"):
            if name in loss_module._buffers and name in estimator._buffers:
                estimator._buffers[name] = None  # the loss owns it and passes it at every call
        estimator.action_space = find_action_space(loss_module.action_space)
        keys = loss_module.tensor_keys
        names = [n for n in cls._AcceptedKeys.__dataclass_fields__ if hasattr(keys, n)]
        estimator.set_keys(**{n: getattr(keys, n) for n in names})
        return estimator

    action_space: str = "categorical"
    #: Whether the target reads the policy at the stored action (then a loss must have it ready).
    needs_policy: ClassVar[bool] = False
    #: What :meth:`for_loss` takes where nothing is given.
    _defaults: ClassVar[dict[str, float]] = {"gamma": 0.99, "tau": 0.03}

    @classmethod
    def _check_loss(cls, loss_module: LossModule, network: TensorDictModuleBase) -> None:
        """Refuse a loss with which this estimator would be silently wrong."""

    def _q_values(self, tensordict: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        return action_values(self.value_network, tensordict, params, self.tensor_keys.action_value)

    def _tau_log_pi(self, tensordict: TensorDictBase, q: Tensor, tau: Tensor | float | None) -> Tensor:
        log_policy = scaled_log_policy(q, self._coefficient("tau", tau))
        return chosen_action_value(log_policy, tensordict.get(self.tensor_keys.action), self.action_space)

    def _next_value(self, tensordict: TensorDictBase, target_params: TensorDictBase | None, kwargs: Any) -> Tensor:
        next_q = kwargs.get("next_q")
        if next_q is None:
            next_q = self._q_values(tensordict.get("next"), target_params)
        return self._soft_value(next_q, kwargs).unsqueeze(-1)

    def _soft_value(self, q: Tensor, given: Any) -> Tensor:
        """The regularized value ``[*B]`` of ``q [*B, A]``, with the coefficients ``given`` or held."""
        return soft_value(q, self._coefficient("tau", given.get("tau")))

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write ``value_target`` and ``advantage = value_target - soft value``, each ``[*B, 1]``."""
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            q = self._q_values(tensordict, params)
            value = self._soft_value(q, {}).unsqueeze(-1)
            target = self.value_estimate(tensordict, target_params=params if target_params is None else target_params)
        tensordict.set(self.tensor_keys.advantage, target - value)
        tensordict.set(self.tensor_keys.value_target, target)
        return tensordict
