"""One loss for every choice of regularizer, reward shaping, head and bootstrap; named losses choose the four.

Shapes: ``*B`` batch (``[*B, T]`` for lambda-returns), ``A`` actions, ``M`` target values of the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import QValueActor
from torchrl.modules.tensordict_module.common import ensure_tensordict_compatible
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.compat import entry, find_action_space
from torchrl_reg.functional.soft import action_index, taken
from torchrl_reg.objectives.base import (
    LossFunction,
    Reduction,
    RegularizedLoss,
    WeightReduction,
    batch_mean,
)
from torchrl_reg.objectives.binding import BoundQNetwork
from torchrl_reg.objectives.heads import Head, Prediction, TargetValues, head_of
from torchrl_reg.objectives.shaping import Shaping
from torchrl_reg.objectives.value import RegValueEstimators, terminated_flag
from torchrl_reg.regularizers import HardMax, Regularized, Regularizer
from torchrl_reg.regularizers.checks import check_flag
from torchrl_reg.regularizers.coefficients import Coefficient


class _Policies(NamedTuple):
    """The policies that are needed: at s' its value or all of it, at s the scaled log-policies."""

    next_value: Tensor | None = None
    following: Regularized | None = None
    here: Tensor | None = None
    online: Tensor | None = None
    given: dict[str, Tensor] = {}
    """What the policies at s depend on beside q."""


class QLearningLoss(RegularizedLoss):
    """``distance(Z(s, a), r + bonus + gamma sum_a' pi(a'|s') (Z_target(s', a') - cost(a')))``, every part an object.

    Args:
        value_network: a :class:`~torchrl.modules.QValueActor` (or a plain module from ``"observation"`` to ``[*B, A]``
            Q-values, together with ``action_space``): the expected value. A
            :class:`~torchrl_reg.modules.QuantileQActor`, :class:`~torchrl_reg.modules.FixedQuantileQActor` or
            :class:`~torchrl_reg.modules.CategoricalQActor`: the distribution of returns.
        regularizer: slot 1, shared with everything else that holds it (actor, exploration, planner); None is the
            maximum.
        shaping: slot 2, a bonus from the target network at s and the stored action; None is none.
        head: slot 3; None is the actor's.
        double_dqn: let the online network choose the policy at s', not with a shaping; the target network evaluates it.
        loss_function: distance of an expected value: ``"l2"`` (the default, as of TorchRL's DQNLoss), ``"half_l2"``
            (half the square), ``"smooth_l1"`` (Huber, delta 1) or ``"l1"``.
        delay_value: keep a separate target network (True), or bootstrap on the detached online network.
        action_space: ``"categorical"``, ``"one-hot"`` or a spec; read from the network when it has one.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        use_prioritized_weights: as in :class:`~torchrl.objectives.DQNLoss`.
        weight_reduction: ``"normalized"``, TorchRL's ``sum(w l) / sum(w)`` of priority weights ``w`` and rows ``l``, or
            ``"mean"``, the papers' ``mean(w l)``.
        diagnostics: also return scalars of the parts.
        **head_options: for the actor's head (``num_quantiles``, ``kappa``, ...), where ``head`` is None.

    Every coefficient of a slot is an attribute of the loss: ``loss.tau = 0.01``, ``loss.alpha = 0.5``, ...

    Slot 4 is :meth:`make_value_estimator`: one step (or n, where the data say so), ``"tdlambda"`` or ``"td1"`` on
    ``[*B, T]`` sequences (expected values and fixed quantiles only), ``"regularized_qlambda"`` for targets made once
    per rollout, which are then read as ``value_target`` (expected values only).

    Returns (in a TensorDict): ``loss``, a further ``loss_*`` for each coefficient learnt by dual ascent, and detached
    scalars: those of the regularizer (``entropy``, ``kl``, ``soft_gap``, ``action_gap``, ``tau``, ...), of the shaping
    (``bonus``, ``bonus_clipped``), of a grid ``clipped_mass``, and ``td_error``. Writes the priority ``[*B, 1]``: the
    squared TD error of an expected value, the row's loss of a distribution. Values, costs, bonuses: in reward units.

    Source: Geist et al. 2019 (A theory of regularized MDPs), for the target without shaping.

    Raises:
        ValueError: an option out of range, a head that does not fit the network, ``double_dqn`` with a shaping.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> from torchrl_reg.modules import CategoricalQActor
    >>> from torchrl_reg.objectives import HardTargetUpdate, Munchausen, QLearningLoss
    >>> from torchrl_reg.regularizers import PriorKL
    >>> actor = CategoricalQActor(torch.nn.Linear(4, 51 * 3), spec=Categorical(3))
    >>> loss = QLearningLoss(actor, regularizer=PriorKL(0.1), shaping=Munchausen(0.9)).make_value_estimator(gamma=0.99)
    >>> target_update = HardTargetUpdate(loss, period_updates=100)
    >>> data = TensorDict({
    ...     "observation": torch.randn(8, 4), "action": torch.randint(3, (8,)),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8])
    >>> loss(data)["loss"].shape
    torch.Size([])
    """

    value_network_params: TensorDictParams
    target_value_network_params: TensorDictParams
    regularizer: Regularizer
    shaping: Shaping | None
    #: The head of every loss of this class; None: that of the actor handed in.
    head_type: ClassVar[type[Head] | None] = None
    default_value_estimator: Any = ValueEstimators.TD0
    _stand_ins = {
        ValueEstimators.TD0: RegValueEstimators.REGULARIZED_TD0,
        ValueEstimators.TD1: RegValueEstimators.REGULARIZED_TD1,
        ValueEstimators.TDLambda: RegValueEstimators.REGULARIZED_TDLAMBDA,
    }
    SUPPORTED_VALUE_ESTIMATORS = (*_stand_ins, *_stand_ins.values(), RegValueEstimators.REGULARIZED_QLAMBDA)
    _loss_functions = ("l1", "l2", "half_l2", "smooth_l1")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.head_type is not None:
            cls.__signature__ = _with_options(cls.__init__, cls.head_type)  # type: ignore[attr-defined]

    def __init__(
        self,
        value_network: QValueActor | nn.Module,
        *,
        regularizer: Regularizer | None = None,
        shaping: Shaping | None = None,
        head: Head | None = None,
        double_dqn: bool = False,
        loss_function: LossFunction | None = None,
        delay_value: bool = True,
        action_space: str | TensorSpec | None = None,
        reduction: Reduction | None = "mean",
        use_prioritized_weights: bool | Literal["auto"] = "auto",
        weight_reduction: WeightReduction = "normalized",
        diagnostics: bool = True,
        **head_options: Any,
    ) -> None:
        super().__init__(
            loss_function=loss_function or "l2",
            reduction=reduction,
            use_prioritized_weights=use_prioritized_weights,
            weight_reduction=weight_reduction,
            diagnostics=diagnostics,
        )
        _check_slot("regularizer", regularizer, Regularizer)
        _check_slot("shaping", shaping, Shaping)
        if double_dqn and shaping is not None:
            why = f"with a {type(shaping).__name__} term, which has one policy for s and s', is undefined"
            raise ValueError(f"double_dqn must be False with a shaping, got True: Double Q-learning {why}.")
        self.delay_value, self.double_dqn = check_flag(delay_value, "delay_value"), check_flag(double_dqn, "double_dqn")
        network = _q_value_actor(value_network, action_space)
        self.head = self._made_head(network, head, head_options)
        self.head.check(network, loss_function)
        self.convert_to_functional(network, "value_network", create_target_params=delay_value)
        self.regularizer = (HardMax() if regularizer is None else regularizer).to(self._default_device)
        self.shaping = None if shaping is None else shaping.to(self._default_device)
        parts = self._coefficients()
        self._learnt: dict[str, Any] = {name: part for name, part in parts.items() if part.is_learnt}
        self._reports_error = any(part.follows_error for part in parts.values())
        self.out_keys = ["loss", *(f"loss_{name}" for name in self._learnt), *self.regularizer.own_out_keys]
        self.action_space = self._resolve_action_space(action_space, network)
        # Eagerly, not on the first forward: else state dicts are asymmetric and torch.compile pays a recompilation.
        self.make_value_estimator()

    def _made_head(self, network: Any, head: Head | None, options: dict[str, Any]) -> Head:
        _check_slot("head", head, Head)
        if head is not None:
            if options:
                raise TypeError(f"{', '.join(options)} must be given to the head where head is given, got both.")
            return head
        kind = self.head_type or head_of(network)
        for name in options.keys() - inspect.signature(kind).parameters.keys():  # as Python says it
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {name!r}")
        return kind(**options)

    @staticmethod
    def _resolve_action_space(action_space: str | TensorSpec | None, network: nn.Module) -> str:
        for attribute in ("action_space", "spec"):
            action_space = getattr(network, attribute, None) if action_space is None else action_space
        if action_space is None:
            raise ValueError(
                "action_space must be 'categorical', 'one-hot' or a spec if the network has none, got None."
            )
        resolved = find_action_space(action_space)
        if resolved not in ("categorical", "one_hot"):
            raise ValueError(f"action_space must be 'categorical' or 'one-hot', got {resolved!r}.")
        return resolved

    def stacked_with(self, others: Sequence[QLearningLoss]) -> Any:
        """This loss and ``others`` as one :class:`~torchrl_reg.objectives.stacked.StackedLoss`.

        Raises:
            ValueError: they cannot be stacked.
        """
        from torchrl_reg.objectives.stacked import StackedLoss

        return StackedLoss([self, *others])

    def drawn(self, rows: int) -> dict[str, Tensor]:
        """The random numbers of a forward pass over ``rows`` rows, drawn now; that pass takes them from its data."""
        how: dict[str, Any] = {"here": self._reads_target_here, "double": self.double_dqn}
        return self.head.drawn(rows, **how, like=next(self.parameters())) if self.head.draws else {}

    def observe(self, statistic: Mapping[str, Tensor] | TensorDictBase | Tensor | float) -> None:
        """Lets coefficients follow a mean squared TD error: a number, or the ``squared_td_error`` of a forward pass.

        Those that do not follow it stay.
        """
        told = isinstance(statistic, Mapping | TensorDictBase)
        error: Any = statistic.get("squared_td_error", None) if told else statistic  # type: ignore[union-attr]
        for coefficient in self._coefficients().values() if error is not None else ():
            coefficient.observe(error)

    # -- parts --------------------------------------------------------------------------------------------------

    def _coefficients(self) -> dict[str, Coefficient]:
        parts: list[Any] = [self.regularizer] if self.shaping is None else [self.regularizer, self.shaping]
        return {name: c for part in parts for name, c in part.coefficients().items()}

    def _make_bound(self, name: str, params: TensorDictBase, private: bool) -> Any:
        how: dict[str, Any] = {"action_value_key": self.tensor_keys.action_value, "rows_dim": int(self._is_stack)}
        return BoundQNetwork(self.value_network, params, private=private, **how)

    def _states_read(self) -> list[NestedKey]:
        own = self.regularizer.in_keys if "regularizer" in self._modules else ()
        return list(dict.fromkeys([*super()._states_read(), *own]))

    def _check_estimator(self, estimator: Any) -> None:
        super()._check_estimator(estimator)
        if getattr(estimator, "precomputed", False) and not self.head.expected:
            raise NotImplementedError(
                f"Targets of a rollout are expected values, so the head must be, got {type(self.head).__name__}."
            )
        if getattr(estimator, "needs_policy", False) and not self.head.traces:
            raise NotImplementedError(
                "A lambda-return mixes values of successive steps, which must mean the same at each: expected values "
                f"or fixed quantiles, got {type(self.head).__name__}."
            )

    # -- forward ------------------------------------------------------------------------------------------------

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``[*B, 1]``."""
        online, target = self._bound(tensordict)
        precomputed = self.value_estimator.precomputed
        data, mask = tensordict, None
        if not precomputed:
            data, mask = self._clean(tensordict, next_too=bool(self.regularizer.in_keys) or online.mixes_rows)
        prediction = self.head.online(online, data)
        batch_dims = prediction.z.ndim - (1 if self.head.expected else 2)
        action = action_index(entry(data, self.tensor_keys.action), self.action_space, batch_dims)
        with torch.no_grad():
            if precomputed:
                values, masses, policies, rows = self._read_target(data, prediction, online)
            else:
                values, masses, policies, rows = self._target(data, prediction, action, mask, online, target)
        reports = self.diagnostics or self._reports_error
        how: dict[str, Any] = {"bound": target, "loss_function": self.loss_function, "reports": reports}
        regression = self.head.regress(prediction, action, values, masses, **how)
        if prediction.z.requires_grad and torch.is_grad_enabled() and not regression.elementwise.requires_grad:
            raise ValueError(
                f"elementwise of {type(self.head).__name__}.regress must have a gradient, got none: compute it from "
                "prediction.z, as q_values() is detached."
            )
        if not precomputed:  # rows of a rollout, which nobody samples again
            self._write_priority(tensordict, regression.priority, mask)
        losses = {"loss": regression.elementwise}
        if policies.online is not None and self.regularizer.own_out_keys:
            losses |= self.regularizer.own_losses(data, policies.online, **policies.given)
        if self.diagnostics and regression.clipped_mass is not None:
            rows["clipped_mass"] = regression.clipped_mass
        terms = self._terms(rows, regression.td_error if reports else None, mask)
        return self._output(data, losses, mask, rows, terms, weighted=tuple(losses))

    def _target(
        self,
        data: TensorDictBase,
        prediction: Prediction,
        action: Tensor,
        mask: Tensor | None,
        online: Any,
        target: Any,
    ) -> tuple[Tensor, Tensor | None, _Policies, dict[str, Tensor]]:
        """Target values ``[*B, M]`` and their masses, the policies they are made of, and diagnostic rows ``[*B]``."""
        head, estimator, regularizer = self.head, self.value_estimator, self.regularizer
        from_online = self.shaping is not None and self.shaping.online
        # The policies at s are compared for the diagnostics, where a pass for them alone draws no random numbers and
        # moves no batch statistics.
        compares = self._watches and regularizer.compares and not (head.draws or target.mixes_rows)
        says = head.target(target, data, here=self._reads_target_here or estimator.needs_policy or compares)
        q = head.q_values(prediction.z, online, data) if self._watches or from_online else None
        if from_online:
            says = says._replace(q=q)
        states: Any = ({}, {})
        if regularizer.in_keys:
            states = regularizer.at_states(data), regularizer.at_states(entry(data, "next"))
        policies = self._policies(says, q, *states)
        if policies.next_value is not None:
            next_value, masses = policies.next_value.unsqueeze(-1), None
        else:
            policy = policies.following or regularizer(head.next_online_q(online, data), **states[1])
            next_value, masses = head.backup(says.next_z, policy, target, greedy=regularizer.greedy_policy)
        rows: dict[str, Tensor] = {}
        bonus = cost = None
        if self.shaping is not None:
            assert says.q is not None and policies.here is not None
            ended = terminated_flag(data, self.tensor_keys).squeeze(-1) if self.shaping.reads_terminated else None
            bonus = self.shaping(says.q, policies.here, action, next_q=says.next_q, terminated=ended)
            if self.diagnostics:
                rows = self.shaping.diagnostics(bonus, taken(policies.here, action))
        if estimator.needs_policy and policies.here is not None:
            cost = taken(regularizer.step_cost(policies.here), action)
        values = estimator.value_estimate(data, next_value=next_value, bonus=bonus, action_cost=cost, mask=mask)
        if masses is not None:  # all lie on the reward there, whatever the network says of a NaN
            masses = masses.masked_fill(terminated_flag(data, self.tensor_keys) & masses.isnan(), 1.0)
        if q is not None and policies.online is not None:
            reference = None if from_online else policies.here
            rows = regularizer.diagnostics(q, policies.online, reference=reference, rows=mask, **states[0]) | rows
        return values, masses, policies, rows

    def _read_target(
        self, data: TensorDictBase, prediction: Prediction, online: Any
    ) -> tuple[Tensor, None, _Policies, dict[str, Tensor]]:
        """As :meth:`_target`, of targets that the value estimator wrote into the rollout that ``data`` are rows of."""
        values = entry(data, self.tensor_keys.value_target)
        if not self._watches:
            return values, None, _Policies(), {}
        q, here = self.head.q_values(prediction.z, online, data), self.regularizer.at_states(data)
        _, logs = self.regularizer.value_and_log_policy(q, **here)
        rows = self.regularizer.diagnostics(q, logs, **here) if self.diagnostics else {}
        return values, None, _Policies(online=logs, given=here), rows

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        if getattr(self._value_estimator, "precomputed", False):
            self._in_keys = [self.tensor_keys.action, *self._state_keys, self.tensor_keys.value_target]

    def _rewards(self, tensordict: TensorDictBase) -> Tensor:
        if self.value_estimator.precomputed:
            return entry(tensordict, self.tensor_keys.value_target).squeeze(-1)
        return super()._rewards(tensordict)

    @property
    def _reads_target_here(self) -> bool:  # for the bonus
        return self.shaping is not None and not self.shaping.online

    @property
    def _watches(self) -> bool:  # whether the online policy at s is needed
        return self.diagnostics or bool(self._learnt or self.regularizer.in_keys)

    def _policies(
        self, says: TargetValues, q: Tensor | None, here: dict[str, Tensor], following: dict[str, Tensor]
    ) -> _Policies:
        """All in one kernel; at s' not with Double Q-learning. The dicts are what the regularizer takes beside q."""
        wanted = {"next": None if self.double_dqn else says.next_q, "here": says.q, "online": q}
        given = {name: values for name, values in wanted.items() if values is not None}
        if not given:
            return _Policies()
        stacked = torch.stack(list(given.values()))
        also = {key: torch.stack([following[key] if n == "next" else here[key] for n in given]) for key in here}
        next_value = policy = None
        if self.double_dqn or self.head.expected:
            values, logs = self.regularizer.value_and_log_policy(stacked, **also)
            next_value = None if self.double_dqn else values[0]
        else:
            made = self.regularizer(stacked, **also)
            policy = Regularized._make(part[0] for part in made)
            logs = made.tau_log_pi
        log_of = dict(zip(given, logs.unbind(), strict=True))
        return _Policies(next_value, policy, log_of.get("here"), log_of.get("online"), here)

    def _terms(self, rows: dict[str, Tensor], td_error: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        """``loss_*`` of learnt coefficients, and what is returned also without diagnostics."""
        held = batch_mean(rows[self.regularizer.controlled], mask) if self._learnt else torch.empty(0)
        terms = {f"loss_{name}": learnt.objective(held) for name, learnt in self._learnt.items()}
        if td_error is not None:
            rows["td_error"] = td_error.abs()
            if self._reports_error:
                terms["squared_td_error"] = batch_mean(td_error.square(), mask)
        return terms

    def _reported(self) -> dict[str, Tensor]:
        return self.regularizer.scalars()


def _q_value_actor(network: Any, action_space: str | TensorSpec | None) -> Any:
    if not isinstance(network, nn.Module):
        kinds = "a QValueActor, or a module with an action_space"
        raise ValueError(f"value_network must be {kinds}, got {type(network).__name__}.")
    return ensure_tensordict_compatible(module=network, wrapper_type=QValueActor, action_space=action_space)


def _check_slot(name: str, value: Any, kind: type) -> None:
    if not (value is None or isinstance(value, kind)):
        raise TypeError(f"{name} must be a {kind.__name__} or None, got {value!r}.")


def _with_options(init: Any, head: type[Head]) -> inspect.Signature:
    """That of a loss whose constructor hands on the options of ``head``."""
    own = inspect.signature(init)
    _self, *named, rest = own.parameters.values()
    options = [option.replace(kind=option.KEYWORD_ONLY) for option in inspect.signature(head).parameters.values()]
    return own.replace(parameters=[*named, *options, rest])
