"""One loss for every choice of regularizer, reward shaping, head and bootstrap; named losses choose the four.

Shapes: ``*B`` batch (``[*B, T]`` for lambda-returns), ``A`` actions, ``M`` target values of the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import QValueActor
from torchrl.modules.tensordict_module.common import ensure_tensordict_compatible
from torchrl.objectives.utils import ValueEstimators

from torchrl_reg.compat import fast_get, find_action_space
from torchrl_reg.functional.soft import action_index, gather_action
from torchrl_reg.objectives.base import (
    LossFunction,
    Reduction,
    RegularizedLoss,
    WeightReduction,
    batch_mean,
)
from torchrl_reg.objectives.binding import BoundQNetwork, mixes_rows
from torchrl_reg.objectives.heads import Head, Prediction, Regression, Target, head_of
from torchrl_reg.objectives.shaping import Shaping
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.objectives.value import OnlinePolicy, RegValueEstimators
from torchrl_reg.regularizers import HardMax, Regularizer
from torchrl_reg.regularizers.checks import check_flag
from torchrl_reg.regularizers.coefficients import Coefficient


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

    The coefficients of the slots are attributes of the loss: ``loss.tau = 0.01``, ``loss.alpha = 0.5``, ...; a custom
    one is reached at its part, ``loss.regularizer.name``.

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
            cls.__signature__ = _with_options(cls.__init__, cls.head_type)

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
        self.head = self._make_head(network, head, head_options)
        self.head.check(network, loss_function)
        self.convert_to_functional(network, "value_network", create_target_params=delay_value)
        self.regularizer = (HardMax() if regularizer is None else regularizer).to(self._default_device)
        self.shaping = None if shaping is None else shaping.to(self._default_device)
        parts = self._coefficients()
        self._learnt: dict[str, Any] = {name: part for name, part in parts.items() if part.is_learnt}
        self._reports_error = any(part.follows_error for part in parts.values())
        self.action_space = self._resolve_action_space(action_space, network)
        # Eagerly, not on the first forward: else state dicts are asymmetric and torch.compile pays a recompilation.
        self.make_value_estimator()

    def _make_head(self, network: Any, head: Head | None, options: dict[str, Any]) -> Head:
        _check_slot("head", head, Head)
        if head is not None:
            if options:
                raise TypeError(f"{', '.join(options)} must be given to the head where head is given, got both.")
            return head
        kind = self.head_type or head_of(network)
        for name in options.keys() - inspect.signature(kind).parameters.keys():  # in Python's own words
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

    def stacked_with(self, others: Sequence[QLearningLoss]) -> StackedLoss:
        """This loss and ``others`` as one.

        Raises:
            ValueError: they cannot be stacked.
        """
        return StackedLoss([self, *others])

    def sample_fractions(self, rows: int) -> dict[str, Tensor]:
        """The random numbers of a forward pass over ``rows`` rows, sampled now; that pass takes them from its data."""
        if not self.head.draws:
            return {}
        here, like = self.shaping is not None and not self.shaping.online, next(self.parameters())
        return self.head.sample_fractions(rows, here=here, double=self.double_dqn, like=like)

    def observe(self, statistic: Mapping[str, Tensor] | TensorDictBase | Tensor | float) -> None:
        """Lets coefficients follow a mean squared TD error: a number, or the ``squared_td_error`` of a forward pass.

        Those that do not follow it stay.
        """
        given = isinstance(statistic, Mapping | TensorDictBase)
        error: Any = statistic.get("squared_td_error", None) if given else statistic  # type: ignore[union-attr]
        for coefficient in self._coefficients().values() if error is not None else ():
            coefficient.observe(error)

    # -- parts --------------------------------------------------------------------------------------------------

    def _coefficients(self) -> dict[str, Coefficient]:
        parts: list[Any] = [self.regularizer] if self.shaping is None else [self.regularizer, self.shaping]
        return {name: c for part in parts for name, c in part.coefficients().items()}

    def _loss_keys(self) -> list[str]:
        more = ["squared_td_error"] if self._reports_error else []
        return ["loss", *self.regularizer.own_out_keys, *(f"loss_{name}" for name in self._learnt), *more]

    def _diagnostic_keys(self) -> list[str]:
        regularizer, shaping, estimator = self.regularizer, self.shaping, self.value_estimator
        keys = [*regularizer.diagnostic_keys, *self.head.diagnostic_keys, "td_error", *regularizer.coefficient_names]
        if estimator.writes_targets:  # without the target network's policy at s
            return keys
        from_online = shaping is not None and shaping.online
        extra_pass = not (self.head.draws or mixes_rows(self.value_network))
        if regularizer.reports_target_kl and not from_online and (estimator.reads_policy or extra_pass):
            keys.append("kl")
        return keys if shaping is None else [*keys, *shaping.diagnostic_keys]

    def _make_bound(self, name: str, params: TensorDictBase, private: bool) -> Any:
        return BoundQNetwork(
            self.value_network,
            params,
            private=private,
            action_value_key=self.tensor_keys.action_value,
            rows_dim=int(self._is_stack),
        )

    def _states_read(self) -> list[NestedKey]:
        own = self.regularizer.in_keys if "regularizer" in self._modules else ()
        return list(dict.fromkeys([*super()._states_read(), *own]))

    def _check_estimator(self, estimator: Any) -> None:
        super()._check_estimator(estimator)
        estimator.check_head(self.head)

    @property
    def _reward_key(self) -> NestedKey:
        return self.value_estimator.reward_key

    def _next_state_keys(self) -> Sequence[NestedKey]:
        return self.value_estimator.next_state_keys(self._state_keys)

    def _rewards(self, tensordict: TensorDictBase, key: NestedKey | None = None) -> Tensor:
        return super()._rewards(tensordict, self._reward_key if key is None else key)

    # -- forward ------------------------------------------------------------------------------------------------

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """``loss`` (reduced) and detached diagnostics; writes the priority ``[*B, 1]``."""
        regularizer, head, estimator = self.regularizer, self.head, self.value_estimator
        online, target_network = self._bound(tensordict)
        data, mask = self._clean(tensordict, next_too=bool(regularizer.in_keys) or online.mixes_rows)
        prediction = head.outputs(online, data)
        batch_dims = prediction.z.ndim - (1 if head.expected else 2)
        action = action_index(fast_get(data, self.tensor_keys.action), self.action_space, batch_dims)
        with torch.no_grad():
            policy = self._online_policy(prediction, online, data)
            target = estimator.target(
                head,
                data,
                action,
                online=online,
                target_network=target_network,
                online_policy=policy,
                mask=mask,
                double_dqn=self.double_dqn,
                reports_target_kl=self._diagnoses
                and regularizer.reports_target_kl
                # A pass for the diagnostics alone must draw no random numbers and move no batch statistics.
                and not (head.draws or target_network.mixes_rows),
            )
            rows = self._diagnostics(policy, target, action, mask)
        reports = self.diagnostics or self._reports_error
        regression = head.regress(
            prediction, action, target, bound=target_network, loss_function=self.loss_function, reports=reports
        )
        self._check_gradient(prediction, regression)
        if not estimator.writes_targets:
            self._write_priority(tensordict, regression.priority, mask)
        losses = {"loss": regression.elementwise}
        if policy is not None:
            losses |= regularizer.own_losses(data, policy.tau_log_pi, **policy.states)
        if self.diagnostics and regression.clipped_mass is not None:
            rows["clipped_mass"] = regression.clipped_mass
        terms = self._terms(rows, regression.td_error if reports else None, mask)
        return self._output(data, losses, mask, rows, terms, weighted=tuple(losses))

    @property
    def _diagnoses(self) -> bool:
        """True if the regularizer's diagnostics are needed: reported, or held at a target by a learnt coefficient."""
        return self.diagnostics or bool(self._learnt)

    @property
    def _needs_online_policy(self) -> bool:
        """True if the online policy at s is needed: for diagnostics, a prior network's loss, or the bonus."""
        from_online = self.shaping is not None and self.shaping.online
        return self._diagnoses or from_online or bool(self.regularizer.in_keys)

    def _online_policy(self, prediction: Prediction, online: Any, data: TensorDictBase) -> OnlinePolicy | None:
        if not self._needs_online_policy:
            return None
        q, states = self.head.q_values(prediction.z, online, data), self.regularizer.at_states(data)
        return OnlinePolicy(q, self.regularizer.value_and_log_policy(q, **states)[1], states)

    def _diagnostics(
        self, policy: OnlinePolicy | None, target: Target, action: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Rows ``[*B]`` of the regularizer and of the shaping."""
        rows: dict[str, Tensor] = {}
        if policy is not None and self._diagnoses:
            reference = None if self.shaping is not None and self.shaping.online else target.tau_log_pi
            rows |= self.regularizer.diagnostics(
                policy.q, policy.tau_log_pi, reference=reference, rows=mask, **policy.states
            )
        if self.diagnostics and target.bonus is not None:
            assert self.shaping is not None and target.tau_log_pi is not None
            rows |= self.shaping.diagnostics(target.bonus, gather_action(target.tau_log_pi, action))
        return rows

    def _check_gradient(self, prediction: Prediction, regression: Regression) -> None:
        if prediction.z.requires_grad and torch.is_grad_enabled() and not regression.elementwise.requires_grad:
            raise ValueError(
                f"elementwise of {type(self.head).__name__}.regress must have a gradient, got none: compute it from "
                "prediction.z, as q_values() is detached."
            )

    def _terms(self, rows: dict[str, Tensor], td_error: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        """``loss_*`` of learnt coefficients, and what is returned also without diagnostics."""
        terms: dict[str, Tensor] = {}
        statistic = batch_mean(rows[self.regularizer.dual_statistic], mask) if self._learnt else None
        for name, learnt in self._learnt.items():
            terms[f"loss_{name}"] = learnt.objective(statistic)
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
    given = {"spec": action_space} if isinstance(action_space, TensorSpec) else {"action_space": action_space}
    return ensure_tensordict_compatible(module=network, wrapper_type=QValueActor, **given)


def _check_slot(name: str, value: Any, kind: type) -> None:
    if not (value is None or isinstance(value, kind)):
        raise TypeError(f"{name} must be a {kind.__name__} or None, got {value!r}.")


def _with_options(init: Any, head: type[Head]) -> inspect.Signature:
    """That of a loss whose constructor hands on the options of ``head``."""
    own = inspect.signature(init)
    _self, *named, rest = own.parameters.values()
    options = [option.replace(kind=option.KEYWORD_ONLY) for option in inspect.signature(head).parameters.values()]
    return own.replace(parameters=[*named, *options, rest])
