"""Base of all losses: coefficients, keys, a value estimator, clean data, reduction, diagnostics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.objectives.utils import ValueEstimators, dispatch_value_estimator, get_value_estimator_entry
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_reg.compat import (
    VALUE_ESTIMATOR_REGISTRY,
    coerce_value_type,
    fast_get,
    shallow_copy,
    unchecked_tensordict,
)
from torchrl_reg.objectives.binding import NetworkLoss
from torchrl_reg.objectives.data_checks import check_before_forward
from torchrl_reg.objectives.value import terminated_flag
from torchrl_reg.regularizers import Coefficient
from torchrl_reg.regularizers.checks import check_discount, check_flag, exact_scalar
from torchrl_reg.regularizers.coefficients import in_process_group, summed_over_ranks

if TYPE_CHECKING:
    from torchrl_reg.regularizers.coefficients import CoefficientProperty

LossFunction = Literal["l1", "l2", "half_l2", "smooth_l1"]
Reduction = Literal["none", "mean", "sum"]
WeightReduction = Literal["normalized", "mean"]


def _coefficient_of_part(name: str, doc: str) -> CoefficientProperty:
    """A property of a loss that reads and assigns the coefficient of whichever part owns one of that name."""

    def get(loss: RegularizedLoss) -> Tensor:
        return loss._coefficient(name).value

    def put(loss: RegularizedLoss, value: Any) -> None:
        loss._coefficient(name).assign(value)

    return property(get, put, doc=doc)  # type: ignore[return-value]


def _set_by_make_value_estimator(name: str) -> property:
    """A property without a value that refuses assignment, which would have no effect."""

    def refuse(loss: RegularizedLoss, value: Any = None) -> None:
        raise AttributeError(f"{name} is a hyperparameter of make_value_estimator({name}=...), got an assignment.")

    return property(refuse, refuse)


class RegularizedLoss(NetworkLoss):
    """Base of the losses of this package.

    Args:
        loss_function: distance between prediction and target: ``"smooth_l1"`` (Huber, delta 1), ``"l2"``, ``"l1"``.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.
        use_prioritized_weights: as in :class:`~torchrl.objectives.DQNLoss`.
        weight_reduction: what ``reduction="mean"`` makes of rows ``l`` with priority weights ``w``: ``"normalized"`` is
            TorchRL's ``sum(w l) / sum(w)``, in which the scale of the weights cancels; ``"mean"`` is ``mean(w l)``, as
            in Schaul et al. 2016, Rainbow, Dopamine and Beyond The Rainbow.
        diagnostics: also return the detached scalars listed by the subclass.

    Attributes:
        data_checks: which batches are checked for missing entries, NaN and actions of the wrong kind, which waits for
            the device: ``"first"``, ``"always"``, or ``"never"`` (``"first"`` turns into that after one batch).
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

    tensor_keys: Any
    default_keys: Any = _AcceptedKeys
    value_network: TensorDictModule

    #: Names of the coefficients that the loss itself owns.
    coefficient_names: ClassVar[tuple[str, ...]] = ()
    tau = _coefficient_of_part("tau", "The current temperature, in reward units.")
    alpha = _coefficient_of_part("alpha", "The current weight of the reward shaping.")
    clip_min = _coefficient_of_part("clip_min", "The current lower clip, in reward units; -inf is none.")
    beta = _coefficient_of_part("beta", "The current inverse temperature, per unit of reward.")
    lam = _coefficient_of_part("lam", "The current weight of a KL divergence, in reward units.")
    gamma = _set_by_make_value_estimator("gamma")
    lmbda = _set_by_make_value_estimator("lmbda")
    default_value_estimator: Any = ValueEstimators.TD0
    #: TorchRL's names of the estimators that this loss replaces by its own (``"td0"`` -> soft TD(0), ...).
    _stand_ins: ClassVar[dict[Any, Any]] = {}
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[Any, ...]] = (ValueEstimators.TD0,)
    _loss_functions: ClassVar[tuple[str, ...]] = ("l1", "l2", "smooth_l1")
    #: True if the rows of a batch have to be the successive steps of paths.
    follows_paths: ClassVar[bool] = False
    #: True if this is a stack of ``S`` losses (:mod:`~torchrl_reg.objectives.stacked`): ``[S, B]`` in, ``[S]`` out.
    _is_stack: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "_stand_ins" in vars(cls) and "SUPPORTED_VALUE_ESTIMATORS" not in vars(cls):
            own = (*cls._stand_ins, *cls._stand_ins.values())
            cls.SUPPORTED_VALUE_ESTIMATORS = tuple(dict.fromkeys((*own, *cls.SUPPORTED_VALUE_ESTIMATORS)))

    def __init__(
        self,
        *,
        loss_function: LossFunction,
        reduction: Reduction | None = "mean",
        use_prioritized_weights: bool | Literal["auto"] = "auto",
        weight_reduction: WeightReduction = "normalized",
        diagnostics: bool = True,
    ) -> None:
        super().__init__()
        self._selected_keys: list[str] | None = None
        if loss_function not in self._loss_functions:
            *others, last = map(repr, self._loss_functions)
            raise ValueError(f"loss_function must be {', '.join(others)} or {last}, got {loss_function!r}.")
        reduction = "mean" if reduction is None else reduction  # as TorchRL's losses read None
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}.")
        if not isinstance(use_prioritized_weights, bool) and use_prioritized_weights != "auto":
            raise ValueError(f"use_prioritized_weights must be True, False or 'auto', got {use_prioritized_weights!r}.")
        if weight_reduction not in ("normalized", "mean"):
            raise ValueError(f"weight_reduction must be 'normalized' or 'mean', got {weight_reduction!r}.")
        self.data_checks = "first"
        self.loss_function = loss_function
        self.reduction = reduction
        self.use_prioritized_weights = use_prioritized_weights
        self.weight_reduction = weight_reduction
        self.diagnostics = check_flag(diagnostics, "diagnostics")

    @property
    def data_checks(self) -> Literal["first", "always", "never"]:
        """Which batches are checked: ``"first"``, ``"always"`` or ``"never"``."""
        return self.__dict__["_data_checks"]

    @data_checks.setter
    def data_checks(self, which: Literal["first", "always", "never"]) -> None:
        self.__dict__["_data_checks"] = which
        # A hook, even one that does nothing, takes a module off the fast path of its call.
        hooks = self._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is check_before_forward]:
            del hooks[key]
        if which != "never":
            self.register_forward_pre_hook(check_before_forward)

    def check_data(self, tensordict: TensorDictBase) -> None:
        """Raise if the loss cannot learn from ``tensordict``, subject to :attr:`data_checks`; forward calls it.

        For compiled losses, whose graphs do not contain these checks.
        """
        check_before_forward(self, (tensordict,))

    # -- coefficients -------------------------------------------------------------------------------------------

    def _coefficients(self) -> dict[str, Coefficient]:
        """Every coefficient of the loss and its parts, by name."""
        return {name: getattr(self, f"{name}_coefficient") for name in self.coefficient_names}

    def _coefficient(self, name: str) -> Coefficient:
        own: Any = self._modules.get(f"{name}_coefficient")
        if own is not None:  # 3 us less than by the dictionary of all, which ImplicitQLoss reads six times a pass
            return own
        found = self._coefficients()
        if name not in found:
            names = ", ".join(found) or "none"
            raise AttributeError(f"{type(self).__name__} has no coefficient {name!r}, only {names}.")
        return found[name]

    # -- keys ---------------------------------------------------------------------------------------------------

    def _states_read(self) -> list[NestedKey]:
        """Entries of a state that the networks read."""
        networks = [getattr(self, name) for name in self._network_names]
        keys = dict.fromkeys(key for network in networks for key in network.in_keys)
        return [key for key in keys if key != self.tensor_keys.action]

    def _set_in_keys(self) -> None:
        keys, self._state_keys = self.tensor_keys, self._states_read()
        found, next_states = [keys.action, *self._state_keys, self._reward_key], self._next_state_keys()
        if next_states:
            found += [("next", key) for key in (keys.done, keys.terminated, *next_states)]
        self._in_keys = list(dict.fromkeys(found))

    @property
    def _reward_key(self) -> NestedKey:
        """The entry ``[*B, 1]`` that targets are computed from."""
        return ("next", self.tensor_keys.reward)

    def _next_state_keys(self) -> Sequence[NestedKey]:
        """Entries of s' that the networks read; none where targets are computed before the rows are sampled."""
        return self._state_keys

    @property
    def in_keys(self) -> list[NestedKey]:
        """Entries read from the input (as keyword arguments: joined with ``_``)."""
        return self._in_keys

    @in_keys.setter
    def in_keys(self, keys: list[NestedKey]) -> None:
        self._in_keys = keys

    @property
    def out_keys(self) -> list[str]:
        """All entries that a forward pass returns, or those that ``select_out_keys`` chose."""
        if self._selected_keys is not None:
            return self._selected_keys
        return [*self._loss_keys(), *(self._diagnostic_keys() if self.diagnostics else ())]

    @out_keys.setter
    def out_keys(self, keys: Sequence[str] | None) -> None:
        self._selected_keys = None
        if keys is not None and list(keys) != self.out_keys:  # reset_out_keys gives back the list it found
            self._selected_keys = list(keys)

    def _loss_keys(self) -> list[str]:
        """Names of the losses, and of scalars returned with and without diagnostics."""
        return ["loss"]

    def _diagnostic_keys(self) -> list[str]:
        """Names of the diagnostics."""
        return ["td_error", "tau"]

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

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> Any:
        """Choose the value estimator by name, enum, class or instance; returns the loss.

        Coefficients of the loss or its parts given here (``tau``, ``alpha``, ...) are assigned to them: that is where
        they live, and the estimator is handed them at every call.
        """
        given = self.default_value_estimator if value_type is None else value_type
        kind = given if isinstance(given, type) else type(given)
        named = not issubclass(kind, ValueEstimatorBase)
        if named:
            given = coerce_value_type(given)
            given = self._stand_ins.get(given, given)
            kind = get_value_estimator_entry(given).cls if given in self.SUPPORTED_VALUE_ESTIMATORS else kind
        if issubclass(kind, ValueEstimatorBase):  # before anything is changed
            self._check_estimator(kind)
        given_to = {c: hyperparams.pop(n) for n, c in self._coefficients().items() if n in hyperparams}
        values = {c: c.checked(value) for c, value in given_to.items()}
        for name in ("gamma", "lmbda"):
            if name in hyperparams:
                hyperparams[name] = check_discount(hyperparams[name], name)
        if named:
            hyperparams.setdefault("device", self._default_device)
            dispatch_value_estimator(self, given, supported=self.SUPPORTED_VALUE_ESTIMATORS, **hyperparams)
        else:
            if given is kind:
                hyperparams.setdefault("gamma", 0.99)
                given = kind.for_loss(self, **hyperparams)
            self._check_shares(given)
            self._value_estimator, self.value_type = given, kind
        for coefficient, value in values.items():
            coefficient.assign(value)
        self._keep_exact(hyperparams)
        self._forward_value_estimator_keys()
        return self

    def _check_estimator(self, estimator: type) -> None:
        """Refuse estimators of another backup: this loss would use them in part, or not at all."""
        own = {get_value_estimator_entry(self._stand_ins.get(v, v)).cls for v in self.SUPPORTED_VALUE_ESTIMATORS}
        registered = {entry.cls for entry in VALUE_ESTIMATOR_REGISTRY.values()}
        if estimator not in own and (estimator in registered or not issubclass(estimator, tuple(own))):
            names = " or ".join(sorted(cls.__name__ for cls in own))
            raise NotImplementedError(f"{type(self).__name__} takes a {names}, got {estimator.__name__}.")

    def _check_shares(self, estimator: ValueEstimatorBase) -> None:
        """Refuse an instance with a regularizer of its own: assigning to the loss's would have no effect."""
        for name in ("regularizer", "shaping"):
            own, theirs = getattr(self, name, None), getattr(estimator, name, None)
            if own is not theirs and own is not None and theirs is not None:
                raise ValueError(
                    f"value_type must be an estimator with the loss's own {name}, got a {type(estimator).__name__} "
                    f"with another: build it by {type(estimator).__name__}.for_loss(loss, gamma=...)."
                )

    def _keep_exact(self, hyperparams: dict[str, Any]) -> None:
        # Estimators register float32 buffers; in float64 a gamma of 0.9 would then be wrong by 1e-8.
        for name in ("gamma", "lmbda"):
            if name in hyperparams:
                buffer = getattr(self._value_estimator, name)
                self._value_estimator.register_buffer(name, exact_scalar(hyperparams[name], buffer.device))

    # -- data ---------------------------------------------------------------------------------------------------

    def _loss_mask(self, tensordict: TensorDictBase, rewards: Tensor | None = None) -> Tensor | None:
        """The rows ``[*B]`` that count, or None if all do."""
        mask = None
        for key in self._loss_mask_keys():
            found = fast_get(tensordict, key)
            if found is not None:
                found = self._expand_loss_mask(found, self._rewards(tensordict) if rewards is None else rewards)
                mask = found if mask is None else mask & found
        return mask

    def _rewards(self, tensordict: TensorDictBase, key: NestedKey | None = None) -> Tensor:
        """The reward of each row, ``[*B]``, or another such entry."""
        key = ("next", self.tensor_keys.reward) if key is None else key
        reward = fast_get(tensordict, key)
        if reward is None:
            raise KeyError(f"data must have {key!r}, the reward of each step, got none.")
        return reward.squeeze(-1) if reward.ndim > tensordict.batch_dims else reward

    def _clean(self, tensordict: TensorDictBase, *, next_too: bool = True) -> tuple[TensorDictBase, Tensor | None]:
        """The data with masked rows and states after termination zeroed, and the mask of the rows.

        ``next_too=False`` leaves states after termination as they are, where only the target reads them, which drops
        them anyway.
        """
        keys, mask = self.tensor_keys, self._loss_mask(tensordict)
        if mask is None and not next_too:
            return tensordict, None
        next_states = self._next_state_keys()
        ended = terminated_flag(tensordict, keys) if next_states else None
        here = [keys.priority_weight, self._reward_key, *self._state_keys]
        return cleaned(tensordict, mask, ended, action=keys.action, here=here, next_states=next_states), mask

    # -- output -------------------------------------------------------------------------------------------------

    def _write_priority(self, tensordict: TensorDictBase, priority: Tensor, mask: Tensor | None) -> None:
        """Write the priorities ``[*B]``, 0 in rows that do not count."""
        priority = (priority if mask is None else torch.where(mask, priority, 0.0)).unsqueeze(-1)
        if tensordict.device is not None:
            priority = priority.to(tensordict.device)
        held = fast_get(tensordict, self.tensor_keys.priority)
        if held is not None and (held.shape, held.dtype) == (priority.shape, priority.dtype):
            held.copy_(priority)
        else:
            tensordict.set(self.tensor_keys.priority, priority, inplace=True)

    def _reported(self) -> dict[str, Tensor]:
        """The current coefficients that are reported beside the means of the rows."""
        return {"tau": self.tau}

    def _output(
        self,
        data: TensorDictBase,
        losses: dict[str, Tensor],
        mask: Tensor | None,
        rows: dict[str, Tensor],
        terms: dict[str, Tensor],
        weighted: Sequence[str] = ("loss",),
    ) -> TensorDict:
        """The ``losses [*B]`` reduced, further ``terms``, the means of the ``rows [*B]``, and the coefficients.

        The weights of a prioritized sample apply to the losses named in ``weighted``.
        """
        weights = fast_get(data, self.tensor_keys.priority_weight) if self.use_prioritized_weights else None
        if mask is not None and weights is not None:
            weights = torch.where(mask.view_as(weights), weights, 0.0)
        out = {n: self._reduced(data, x, mask, weights if n in weighted else None) for n, x in losses.items()} | terms
        if self.diagnostics:
            dtype = next(iter(out.values())).dtype
            out |= _means(rows, mask, dtype, 1 if self._is_stack else 0)
            out |= {name: value.to(dtype, copy=True) for name, value in self._reported().items()}
        result = unchecked_tensordict(out)
        params = [f"{prefix}{name}_params" for name in self._network_names for prefix in ("", "target_")]
        self._clear_weakrefs(data, result, *params)
        return result

    def _reduced(self, data: TensorDictBase, loss: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
        if self._is_stack:
            if weights is not None or mask is not None:
                raise NotImplementedError("A stack of losses takes batches without weights and masks, got some.")
            return loss.mean(1)
        if mask is None and weights is None and self.reduction == "mean":
            return loss.mean()
        if weights is not None and self.reduction == "mean" and self.weight_reduction == "mean":
            return masked_mean(weights.view_as(loss) * loss, mask)
        # TorchRL's reduction would look for the masks again; skipped where there are none.
        return self._reduce_loss(loss, tensordict=None if mask is None else data, weights=weights)


# -- means ------------------------------------------------------------------------------------------------------------


def masked_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``rows`` over those of ``mask``, or all."""
    return rows.mean() if mask is None else torch.where(mask, rows, 0.0).sum() / mask.sum().clamp(min=1)


def batch_mean(rows: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`masked_mean` for a coefficient, without gradient: of the batches of all ranks, where there are several."""
    if not in_process_group():
        return masked_mean(rows.detach(), mask)
    unmasked, count = (
        (rows, torch.ones_like(rows)) if mask is None else (torch.where(mask, rows, 0.0), mask.to(rows.dtype))
    )
    total, number = summed_over_ranks(torch.stack((unmasked.sum(), count.sum()))).unbind()
    return total / number.clamp(min=1)


def _means(rows: dict[str, Tensor], mask: Tensor | None, dtype: torch.dtype, lead_dims: int = 0) -> dict[str, Tensor]:
    """Means of equally shaped rows over all but the first ``lead_dims`` dimensions, in one reduction and in ``dtype``.

    Over the rows of ``mask`` if there is one.
    """
    if not rows:
        return {}
    # Without batch dimensions a row is a 0-dimensional tensor, which a float64 coefficient promotes: cast back.
    stacked = torch.stack([row.detach() for row in rows.values()]).to(dtype)
    stacked = stacked.reshape(*stacked.shape[: 1 + lead_dims], -1)
    if mask is None:
        means = stacked.mean(-1)
    else:
        means = torch.where(mask.reshape(-1), stacked, 0.0).sum(1) / mask.sum().clamp(min=1)
    return dict(zip(rows, means.unbind(), strict=True))


# -- clean data -------------------------------------------------------------------------------------------------------


def cleaned(
    tensordict: TensorDictBase,
    mask: Tensor | None,
    ended: Tensor | None,
    *,
    action: NestedKey,
    here: Iterable[NestedKey] = (),
    next_states: Iterable[NestedKey] = (),
) -> TensorDictBase:
    """Zeroes masked rows and states after termination, so that a NaN there reaches no gradient.

    A shallow copy; masks of actions become True. Masked are the rows outside ``mask [*B]``; ``next_states``, keys below
    ``"next"``, are also zeroed where ``ended [*B, 1]``. Floats are replaced only where they are not finite, so that
    batch statistics are those of the data.
    """
    out = shallow_copy(tensordict)
    if mask is not None:
        _blank(out, action, ~mask, whole=True)  # an index out of range, a point outside the box
        for key in here:
            _blank(out, key, ~mask)
    if ended is not None:
        unused = ended.squeeze(-1) if mask is None else ended.squeeze(-1) | ~mask
        for key in next_states:
            _blank(out.get("next"), key, unused)
    return out


def _blank(tensordict: TensorDictBase, key: NestedKey, rows: Tensor, *, whole: bool = False) -> None:
    found = fast_get(tensordict, key)
    if found is None:
        return
    batch_dims = rows.ndim
    rows = rows.reshape(rows.shape + (1,) * (found.ndim - rows.ndim))
    if found.is_floating_point() and not whole:
        rows = rows & ~found.isfinite()
    # An all-False action mask would produce NaN, so it is filled with True.
    fill = found.dtype == torch.bool and not whole
    if found.is_floating_point() and whole:  # another row's, because 0 may lie outside the policy's box
        flat, batch = found.reshape(-1, *found.shape[batch_dims:]), rows.reshape(-1)
        tensordict.set(key, torch.where(rows, flat.index_select(0, (~batch).int().argmax().reshape(1))[0], found))
        return
    tensordict.set(key, found.masked_fill(rows, fill))
