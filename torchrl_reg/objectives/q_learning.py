"""What every loss over a Q-network shares: keys, frozen target network, priorities, reduction.

A method adds its target (and, for quantile heads, its distance) in a file of its own.

Shapes: ``*B`` batch, ``A`` actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.data.utils import _find_action_space
from torchrl.modules import QValueActor
from torchrl.modules.tensordict_module.common import ensure_tensordict_compatible
from torchrl.objectives import LossModule
from torchrl.objectives.utils import (
    _VALUE_ESTIMATOR_REGISTRY,
    ValueEstimators,
    _coerce_value_type,
    dispatch_value_estimator,
    distance_loss,
    get_value_estimator_entry,
)
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_reg.functional.temperature import at_least_float32
from torchrl_reg.objectives.bound_network import BoundQNetwork, mixes_rows
from torchrl_reg.objectives.chosen import chosen_action_value
from torchrl_reg.objectives.coefficients import (
    check_clip,
    check_discount,
    check_temperature,
    check_weight,
)

LossFunction = Literal["l1", "l2", "smooth_l1"]
Reduction = Literal["none", "mean", "sum"]
#: How each schedulable coefficient is checked, wherever it is set.
COEFFICIENT_CHECKS = {
    "tau": check_temperature,
    "alpha": check_weight,
    "clip_min": check_clip,
}


class QLearningLoss(LossModule):
    """Base of the losses ``distance(q(s, a), target)`` with a frozen target network.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor`, or a plain module mapping ``"observation"`` to
            ``[*B, A]`` Q-values together with ``action_space``.
        loss_function: distance between prediction and target: ``"smooth_l1"`` (Huber, delta 1), ``"l2"``, ``"l1"``.
        delay_value: keep a separate target network (True), or bootstrap on the detached online network.
        action_space: ``"categorical"``, ``"one-hot"`` or a spec; read from the network when it has one.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        use_prioritized_weights: as in :class:`~torchrl.objectives.DQNLoss`.
        diagnostics: also return the detached scalars listed by the subclass.
    """

    @dataclass
    class _AcceptedKeys:
        """Keys that ``set_keys`` accepts, and their defaults (those of :class:`~torchrl.objectives.DQNLoss`)."""

        advantage: NestedKey = "advantage"
        value_target: NestedKey = "value_target"
        value: NestedKey = "chosen_action_value"
        action_value: NestedKey = "action_value"
        action: NestedKey = "action"
        priority: NestedKey = "td_error"
        reward: NestedKey = "reward"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        steps_to_next_obs: NestedKey = "steps_to_next_obs"
        priority_weight: NestedKey = "priority_weight"

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys
    out_keys = ["loss"]
    value_network: TensorDictModule
    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams

    default_value_estimator: Any = ValueEstimators.TD0
    #: TorchRL's names for the estimators this loss stands in with its own (``"td0"`` -> soft TD(0), ...).
    _stand_ins: ClassVar[dict[Any, Any]] = {}
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[Any, ...]] = (ValueEstimators.TD0,)

    def __init__(
        self,
        value_network: QValueActor | nn.Module,
        *,
        loss_function: LossFunction = "smooth_l1",
        delay_value: bool = True,
        action_space: str | TensorSpec | None = None,
        reduction: Reduction = "mean",
        use_prioritized_weights: bool | Literal["auto"] = "auto",
        diagnostics: bool = True,
        **coefficients: float | None,
    ) -> None:
        super().__init__()
        if loss_function not in ("l1", "l2", "smooth_l1"):
            raise ValueError(f"loss_function must be 'l1', 'l2' or 'smooth_l1', got {loss_function!r}.")
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
        self.loss_function = loss_function
        self.reduction = reduction
        self.delay_value = delay_value
        self.use_prioritized_weights = use_prioritized_weights
        self.diagnostics = diagnostics
        network = ensure_tensordict_compatible(
            module=value_network, wrapper_type=QValueActor, action_space=action_space
        )
        self.convert_to_functional(network, "value_network", create_target_params=delay_value)
        self._mixes_rows = mixes_rows(network)
        for name, value in coefficients.items():
            if name not in self._schedulable_buffers:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}.")
            # float64 keeps published values exact in double precision; a 0-dim tensor never promotes the data.
            checked = torch.tensor(COEFFICIENT_CHECKS[name](value), dtype=torch.float64)  # type: ignore[arg-type]
            self.register_coeff_buffer(name, checked, device=self._default_device)
        self.action_space = self._resolve_action_space(action_space, network)
        # Eagerly, not on the first forward: else state dicts are asymmetric and torch.compile pays a recompilation.
        self.make_value_estimator()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in COEFFICIENT_CHECKS and name in self.__dict__.get("_buffers", ()) and not isinstance(value, Tensor):
            value = COEFFICIENT_CHECKS[name](value)
        super().__setattr__(name, value)

    # -- keys ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _resolve_action_space(action_space: str | TensorSpec | None, network: nn.Module) -> str:
        if action_space is None:
            action_space = getattr(network, "action_space", None)
        if action_space is None:
            action_space = getattr(network, "spec", None)
        if action_space is None:
            raise ValueError(
                "action_space must be given ('categorical', 'one-hot' or a spec): the value network does not say."
            )
        resolved = _find_action_space(action_space)
        if resolved not in ("categorical", "one_hot"):
            raise ValueError(f"action_space must be 'categorical' or 'one-hot', got {resolved!r}.")
        return resolved

    def _set_in_keys(self) -> None:
        keys = [
            self.tensor_keys.action,
            ("next", self.tensor_keys.reward),
            ("next", self.tensor_keys.done),
            ("next", self.tensor_keys.terminated),
            *self.value_network.in_keys,
            *[("next", key) for key in self.value_network.in_keys],
        ]
        self._in_keys = list(dict.fromkeys(keys))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read from the input (as keyword arguments: joined with ``_``)."""
        return self._in_keys

    @in_keys.setter
    def in_keys(self, keys: list[NestedKey]) -> None:
        self._in_keys = keys

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        estimator = self._value_estimator
        if estimator is not None:
            accepted = estimator._AcceptedKeys.__dataclass_fields__
            names = ["advantage", "value_target", "value", "reward", "done", "terminated"]
            names += ["steps_to_next_obs", "action", "action_value"]
            estimator.set_keys(**{n: getattr(self.tensor_keys, n) for n in names if n in accepted})
        self._set_in_keys()
        self._bind()

    # -- value estimator ----------------------------------------------------------------------------------------

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> QLearningLoss:
        """Choose the value estimator by name, enum, class or instance; returns the loss.

        ``tau``, ``alpha`` and ``clip_min`` given here set the loss's own coefficients: the loss is the one place
        where they live, and it hands them to the estimator at every call.
        """
        if value_type is None:
            value_type = self.default_value_estimator
        for name in COEFFICIENT_CHECKS:
            if name in hyperparams and name in self._buffers:
                setattr(self, name, COEFFICIENT_CHECKS[name](hyperparams.pop(name)))
        if "gamma" in hyperparams:
            check_discount(hyperparams["gamma"])
        if isinstance(value_type, ValueEstimatorBase):
            self._check_estimator(type(value_type))
            self._value_estimator = value_type
            self.value_type = type(value_type)
        elif isinstance(value_type, type) and issubclass(value_type, ValueEstimatorBase):
            self._check_estimator(value_type)
            hyperparams.setdefault("gamma", 0.99)
            self._value_estimator = value_type.for_loss(self, **hyperparams)  # type: ignore[attr-defined]
            self.value_type = value_type
        else:
            value_type = _coerce_value_type(value_type)
            hyperparams.setdefault("device", self._default_device)
            dispatch_value_estimator(
                self,
                self._stand_ins.get(value_type, value_type),
                supported=self.SUPPORTED_VALUE_ESTIMATORS,
                **hyperparams,
            )
        self._keep_exact(hyperparams)
        self._forward_value_estimator_keys()
        return self

    def _check_estimator(self, estimator: type) -> None:
        """Refuse estimators of another backup: this loss would use them in part, or not at all."""
        own = {get_value_estimator_entry(self._stand_ins.get(v, v)).cls for v in self.SUPPORTED_VALUE_ESTIMATORS}
        registered = {entry.cls for entry in _VALUE_ESTIMATOR_REGISTRY.values()}
        if estimator not in own and (estimator in registered or not issubclass(estimator, tuple(own))):
            names = " or ".join(sorted(cls.__name__ for cls in own))
            raise NotImplementedError(f"{type(self).__name__} takes a {names}, got {estimator.__name__}.")

    def _keep_exact(self, hyperparams: dict[str, Any]) -> None:
        # Estimators register float32 buffers; in float64 a gamma of 0.9 would then be wrong by 1e-8.
        for name in ("gamma", "lmbda"):
            if isinstance(hyperparams.get(name), (int, float)):
                buffer = getattr(self._value_estimator, name)
                exact = torch.tensor(hyperparams[name], dtype=torch.float64, device=buffer.device)
                self._value_estimator.register_buffer(name, exact)

    # -- networks -----------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Hold the online and the target parameters in networks that can be called directly."""
        self._networks = None
        if any(nn.parameter.is_lazy(p) for p in self.value_network_params.parameters()):
            return
        key, network = self.tensor_keys.action_value, self.value_network
        self._networks = (
            BoundQNetwork(network, self.value_network_params, key),
            BoundQNetwork(network, self._target_params(), key, private=True),
        )

    def _target_params(self) -> TensorDictBase:
        # Read around LossModule.__getattr__, which warns until an updater exists (forward warns too), unless it has
        # to fill in lazy parameters or stand in for a target network that was not asked for.
        params = self._modules.get("target_value_network_params")
        if params is None or getattr(params, "uninitialized_keys", None):
            return self.target_value_network_params
        return params

    def _bound(self, tensordict: TensorDictBase) -> tuple[BoundQNetwork, BoundQNetwork]:
        """The online and the target network."""
        if self._networks is None:  # lazy: one pass gives the parameters their shapes
            with torch.no_grad():
                self.value_network(tensordict.select(*self.value_network.in_keys))
            self._bind()
        assert self._networks is not None
        return self._networks

    def _apply(self, fn: Any) -> QLearningLoss:
        super()._apply(fn)
        self._bind()  # .to() and .double() replace the target tensors
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_networks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()  # a copy holds tensors of its own

    # -- forward ------------------------------------------------------------------------------------------------

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``(q(s, a) - target)^2 [*B, 1]``."""
        online, target_network = self._bound(tensordict)
        q = online(tensordict)
        action = tensordict.get(self.tensor_keys.action)
        # Targets and priorities keep float32 where the network computes in half precision.
        prediction = at_least_float32(chosen_action_value(q, action, self.action_space))
        with torch.no_grad():
            target, diagnostics = self._target(tensordict, q.detach(), action, target_network)
            target = target.squeeze(-1).to(prediction.dtype)
            target = self._masked_target(tensordict, target, prediction)
            td_error = prediction - target
            self._write_priority(tensordict, td_error.square())
        elementwise = distance_loss(prediction, target, self.loss_function)
        return self._output(tensordict, elementwise, td_error, diagnostics)

    def _target(
        self, tensordict: TensorDictBase, q: Tensor, action: Tensor, target_network: BoundQNetwork
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The regression target ``[*B, 1]`` and diagnostic rows, given the detached online ``q`` at s."""
        raise NotImplementedError

    def _write_priority(self, tensordict: TensorDictBase, priority: Tensor) -> None:
        priority = priority.unsqueeze(-1)
        if tensordict.device is not None:
            priority = priority.to(tensordict.device)
        tensordict.set(self.tensor_keys.priority, priority, inplace=True)

    def _loss_mask(self, tensordict: TensorDictBase, like: Tensor) -> Tensor | None:
        """The rows that count, in the shape of ``like``, or None if all do."""
        mask = None
        for key in self._loss_mask_keys():
            entry = tensordict.get(key, None)
            if entry is not None:
                entry = self._expand_loss_mask(entry, like)
                mask = entry if mask is None else mask & entry
        return mask

    def _masked_target(self, tensordict: TensorDictBase, target: Tensor, prediction: Tensor) -> Tensor:
        # Padded rows may hold NaN. Masking the loss alone would still send NaN gradients through the distance.
        mask = self._loss_mask(tensordict, target)
        return target if mask is None else torch.where(mask, target, prediction.detach())

    def _output(
        self,
        tensordict: TensorDictBase,
        elementwise: Tensor,
        td_error: Tensor,
        diagnostics: dict[str, Tensor],
    ) -> TensorDict:
        weights = self._maybe_get_priority_weight(tensordict)
        loss = self._reduce_loss(elementwise, tensordict=tensordict, weights=weights)
        scalars: dict[str, Tensor] = {}
        if self.diagnostics:
            rows = {**diagnostics, "td_error": td_error.detach().abs()}
            scalars = _means(rows, self._loss_mask(tensordict, td_error))
            if "tau" in self._buffers:
                scalars["tau"] = self.tau.to(loss.dtype, copy=True)
        out = TensorDict({"loss": loss, **scalars})
        self._clear_weakrefs(tensordict, out, "value_network_params", "target_value_network_params")
        return out


def _means(rows: dict[str, Tensor], mask: Tensor | None) -> dict[str, Tensor]:
    """Batch means of equally shaped rows, in one reduction; over the rows of ``mask`` if there is one."""
    stacked = torch.stack(list(rows.values())).float()
    if mask is None:
        means = stacked.flatten(1).mean(1)
    else:
        means = torch.where(mask, stacked, 0.0).flatten(1).sum(1) / mask.sum().clamp(min=1)
    return dict(zip(rows, means.unbind(), strict=True))
