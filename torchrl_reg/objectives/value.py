"""Slot 4: value estimators, the one place where targets are made, registered under string names with TorchRL.

Shapes: ``*B`` batch (``[*B, T]`` for lambda-returns), ``A`` actions, ``M`` target values of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import DQNLoss, LossModule
from torchrl.objectives.utils import register_value_estimator
from torchrl.objectives.value import ValueEstimatorBase

from torchrl_reg.compat import fast_get, find_action_space
from torchrl_reg.functional.returns import lambda_return, q_lambda_return
from torchrl_reg.functional.soft import action_index, gather_action, promoted
from torchrl_reg.modules.n_step import time_dim
from torchrl_reg.objectives.binding import action_values, inner_module
from torchrl_reg.objectives.heads import ExpectedValue, Head, Target, TargetOutputs
from torchrl_reg.objectives.shaping import Munchausen, Shaping
from torchrl_reg.regularizers import ActionPrior, Entropy, HardMax, PriorKL, Regularizer
from torchrl_reg.regularizers.checks import exact_scalar


class RegValueEstimators(Enum):
    """Keys of the registry; the lower-case name works as a string: ``make_value_estimator("munchausen_td0")``.

    TorchRL's own ``ValueEstimators`` enum has members and so cannot be extended.
    """

    REGULARIZED_TD0 = "regularized TD(0)"
    REGULARIZED_TD1 = "regularized TD(1)"
    REGULARIZED_TDLAMBDA = "regularized TD(lambda)"
    REGULARIZED_QLAMBDA = "regularized Q(lambda)"
    SOFT_TD0 = "soft TD(0)"
    SOFT_TDLAMBDA = "soft TD(lambda)"
    MUNCHAUSEN_TD0 = "Munchausen TD(0)"
    PRIOR_SOFT_TD0 = "prior-regularized soft TD(0)"


#: Hyperparameters of estimators that belong to a loss's regularizer and shaping.
_SLOTS = {"tau", "alpha", "clip_min", "beta", "prior", "regularizer", "shaping"}


def terminated_flag(tensordict: TensorDictBase, keys: Any) -> Tensor:
    """True where s' is terminal, ``[*B, 1]``; ``done`` where the data have no ``terminated``."""
    terminated = fast_get(tensordict, ("next", keys.terminated))
    return tensordict.get(("next", keys.done)) if terminated is None else terminated


def done_flag(tensordict: TensorDictBase, keys: Any) -> Tensor:
    """True where the episode ends with s', ``[*B, 1]``; ``terminated`` where the data have no ``done``."""
    done = fast_get(tensordict, ("next", keys.done))
    return tensordict.get(("next", keys.terminated)) if done is None else done


def check_single_steps(tensordict: TensorDictBase, keys: Any, what: str) -> None:
    """Refuse n-step transitions where ``what`` needs single steps."""
    if fast_get(tensordict, keys.steps_to_next_obs) is not None:
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
    an episode is truncated, where the data end and where padding begins; it runs along the dimension named ``"time"``,
    or else the last one of the batch.

    Args:
        tensordict: the data; ``keys`` names its entries.
        next_value: ``V(s') [*B, M]``. bonus: of the shaping ``[*B]``. All in reward units.
        action_cost: the stored action's share of the regularizer ``[*B]``, for lambda-returns.
        mask: the rows ``[*B]`` that count, for lambda-returns; None: all.

    Raises:
        RuntimeError: the reward is not ``[*B, 1]``.
        ValueError: n-step transitions for a lambda-return.
    """
    reward, terminated = fast_get(tensordict, ("next", keys.reward)), terminated_flag(tensordict, keys)
    if not reward.shape == terminated.shape == (*next_value.shape[:-1], 1):
        raise RuntimeError(
            f"reward and terminated must have shape {(*next_value.shape[:-1], 1)}, got {tuple(reward.shape)} and "
            f"{tuple(terminated.shape)}."
        )
    reward, next_value = promoted(reward, next_value)
    # A fill, not a product as in TorchRL: what follows a terminal state, NaN included, must not reach the target.
    next_value = next_value.masked_fill(terminated, 0.0)
    if lmbda is None:
        steps = fast_get(tensordict, keys.steps_to_next_obs)
        if steps is not None:
            gamma = (gamma ** steps.view_as(reward)).to(reward.dtype)
        target = reward + gamma * next_value
        return target if bonus is None else target + bonus.unsqueeze(-1).to(target.dtype)
    check_single_steps(tensordict, keys, "a lambda-return")
    if bonus is not None:
        reward = reward + bonus.unsqueeze(-1).to(reward.dtype)
    ends = done_flag(tensordict, keys) | terminated
    time = _time_dim_of(reward, tensordict)
    if mask is not None:  # the last step before padding ends its sequence, as a truncation does
        mask = _expanded(mask, ends)
        ends = ends | ~mask.roll(-1, time)
        reward, next_value = reward.masked_fill(~mask, 0.0), next_value.masked_fill(~mask, 0.0)
    cost = None if action_cost is None else action_cost.unsqueeze(-1).to(reward.dtype).movedim(time, -2)
    reward, next_value, ends = (each.movedim(time, -2) for each in (reward, next_value, ends))
    return lambda_return(reward, next_value, ends, gamma=gamma, lmbda=lmbda, action_cost=cost).movedim(-2, time)


def _time_dim_of(entry: Tensor, tensordict: TensorDictBase) -> int:
    """The dimension of time of ``entry``, a reward say; its batch may continue behind it, with agents."""
    return time_dim(tensordict) if tensordict.batch_dims else entry.ndim - 2


def _expanded(mask: Tensor, like: Tensor) -> Tensor:
    """Broadcasts a mask of rows to ``like``: all agents share the mask of their environment."""
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim)).expand_as(like)


class OnlinePolicy(NamedTuple):
    """The online network's policy at s, without gradient."""

    q: Tensor
    """Q-values ``[*B, A]``."""
    tau_log_pi: Tensor
    """Scaled log-policy ``[*B, A]``."""
    states: dict[str, Tensor]
    """Its further arguments: :meth:`~torchrl_reg.regularizers.Regularizer.at_states`."""


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

    default_keys = _AcceptedKeys
    action_space: str = "categorical"
    #: True if the target reads the policy at s with any shaping.
    needs_policy: ClassVar[bool] = False
    #: True if a loss has to be given sequences ``[*B, T]``.
    needs_sequences: ClassVar[bool] = False
    #: True if a call of the estimator writes the targets into a rollout, where a loss reads them; no replay, so no
    #: priorities.
    writes_targets: ClassVar[bool] = False
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
        if (space := getattr(value_network, "action_space", None)) is not None:
            self.action_space = find_action_space(space)

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
        owns = isinstance(getattr(loss_module, "regularizer", None), Regularizer)
        if owns and (given := sorted(_SLOTS & hyperparams.keys())):
            raise ValueError(
                f"{', '.join(given)} must be given to the loss, whose regularizer and shaping the estimator shares, "
                f"got {'them' if len(given) > 1 else 'it'} for {cls.__name__}."
            )
        estimator = cls(value_network=network, **{"device": loss_module._default_device, **hyperparams})
        if owns:
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
        if self.reads_policy and loss_module.tensor_keys.action in network.out_keys:
            raise ValueError(
                f"{type(self).__name__} needs the stored action, got TorchRL's DQNLoss, which overwrites it with its "
                "own greedy action before it calls the value estimator; use torchrl_reg.objectives.QLearningLoss."
            )

    @classmethod
    def check_head(cls, head: Head) -> None:
        """Refuse a head whose values this estimator cannot back up.

        Raises:
            NotImplementedError: there is none for a one-step target.
        """

    @property
    def reads_policy(self) -> bool:
        """True if a target needs the policy at s."""
        return self.shaping is not None or self.needs_policy

    @property
    def reward_key(self) -> NestedKey:
        """The entry ``[*B, 1]`` of data that targets are computed from."""
        return ("next", self.tensor_keys.reward)

    def next_state_keys(self, states: Sequence[NestedKey]) -> Sequence[NestedKey]:
        """Which of the entries ``states`` are read of s', too."""
        return states

    def target(
        self,
        head: Head,
        data: TensorDictBase,
        action: Tensor | None,
        *,
        online: Any,
        target_network: Any,
        online_policy: OnlinePolicy | None = None,
        mask: Tensor | None = None,
        double_dqn: bool = False,
        reports_target_kl: bool = False,
    ) -> Target:
        """The regression target of the head's prediction at ``data [*B]``.

        Args:
            head: reads the networks and backs up their values.
            action: indices of the stored actions ``[*B]``; None where neither a shaping nor a trace reads them.
            online, target_network: the networks, bound to their parameters.
            online_policy: for a shaping with ``online=True``, which without it takes the target network's.
            mask: the rows ``[*B]`` that count, for lambda-returns; None: all.
            double_dqn: the online network chooses the policy at s'.
            reports_target_kl: the target network's policy at s is wanted, too, for the diagnostics.
        """
        shaping = self.shaping
        from_online = shaping is not None and shaping.online and online_policy is not None
        here = self.needs_policy or (not from_online and (self.reads_policy or reports_target_kl))
        outputs = head.target_outputs(target_network, data, here=here)
        q, tau_log_pi, cost, bonus = outputs.q, None, None, None
        if q is not None:
            tau_log_pi = self.regularizer.value_and_log_policy(q, **self.regularizer.at_states(data))[1]
        if self.needs_policy:  # of the target network, as the values that the trace corrects
            cost = gather_action(self.regularizer.step_cost(tau_log_pi), action)  # type: ignore[arg-type]
        if from_online:
            q, tau_log_pi, _ = online_policy  # type: ignore[misc]
        if shaping is not None:
            ended = terminated_flag(data, self.tensor_keys).squeeze(-1) if shaping.reads_terminated else None
            bonus = shaping(q, tau_log_pi, action, next_q=outputs.next_q, terminated=ended)
        next_value, masses = self._backed_up_value(head, data, outputs, target_network, online if double_dqn else None)
        values = regularized_target(
            data,
            self.tensor_keys,
            next_value,
            gamma=self.gamma,
            lmbda=self.lmbda,
            bonus=bonus,
            action_cost=cost,
            mask=mask,
        )
        if masses is not None:  # all values lie on the reward there, even if the network's masses are NaN
            masses = masses.masked_fill(terminated_flag(data, self.tensor_keys) & masses.isnan(), 1.0)
        return Target(values, masses, bonus, tau_log_pi)

    def _backed_up_value(
        self, head: Head, data: TensorDictBase, outputs: TargetOutputs, target_network: Any, choosing: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Values ``[*B, M]`` backed up from s' and their masses; the policy there is that of ``choosing``, if given."""
        regularizer = self.regularizer
        states = regularizer.at_states(fast_get(data, "next"))
        if head.expected and choosing is None:
            return regularizer.value_and_log_policy(outputs.next_q, **states)[0].unsqueeze(-1), None
        q = outputs.next_q if choosing is None else head.next_online_q(choosing, data)
        policy = regularizer(q, **states)
        return head.backup(outputs.next_z, policy, target_network, greedy=regularizer.greedy_policy)

    def value_estimate(
        self, tensordict: TensorDictBase, target_params: TensorDictBase | None = None, **_: Any
    ) -> Tensor:
        """The target ``[*B, 1]`` of expected values, by the value network with ``target_params``.

        For TorchRL's losses, and for an estimator by itself; rows outside ``("collector", "mask")`` do not count.
        """
        network, action = _CalledNetwork(self, target_params), None
        if self.reads_policy:
            batch_dims = fast_get(tensordict, self.reward_key).ndim - 1
            action = action_index(tensordict.get(self.tensor_keys.action), self.action_space, batch_dims)
        mask = fast_get(tensordict, ("collector", "mask"))
        target = self.target(_EXPECTED, tensordict, action, online=network, target_network=network, mask=mask)
        return target.values

    def set_keys(self, **kwargs: Any) -> None:
        """As in TorchRL, but a ``value`` that the network does not write is no error: the Q-values are read instead."""
        value = kwargs.pop("value", None)
        super().set_keys(**kwargs)
        if value is not None:
            self.tensor_keys.value = value

    def _q_values(self, tensordict: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        return action_values(self.value_network, tensordict, params, self.tensor_keys.action_value)

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write ``value_target`` and ``advantage = value_target - regularized value``, each ``[*B, 1]``."""
        with torch.set_grad_enabled(self.differentiable and torch.is_grad_enabled()):
            q, states = self._q_values(tensordict, params), self.regularizer.at_states(tensordict)
            value, _ = self.regularizer.value_and_log_policy(q, **states)
            target = self.value_estimate(tensordict, target_params=params if target_params is None else target_params)
        tensordict.set(self.tensor_keys.advantage, target - value.unsqueeze(-1))
        tensordict.set(self.tensor_keys.value_target, target)
        return tensordict


_EXPECTED = ExpectedValue()


class _CalledNetwork:
    """The value network of an estimator, with ``params`` written in at each call: no loss has bound it."""

    def __init__(self, estimator: RegularizedTD0Estimator, params: TensorDictBase | None) -> None:
        self._estimator, self._params = estimator, params

    def __call__(self, tensordict: TensorDictBase) -> Tensor:
        return self._estimator._q_values(tensordict, self._params)

    def both(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        return self(tensordict), self(tensordict.get("next"))


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

    needs_policy = needs_sequences = True

    def __init__(self, *, lmbda: float | Tensor = 0.95, **kwargs: Any) -> None:
        super().__init__(lmbda=lmbda, **kwargs)

    @classmethod
    def check_head(cls, head: Head) -> None:
        if not head.supports_lambda_returns:
            raise NotImplementedError(
                "A lambda-return mixes values of successive steps, which must mean the same at each: expected values "
                f"or fixed quantiles, got {type(head).__name__}."
            )


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


@register_value_estimator(
    RegValueEstimators.REGULARIZED_QLAMBDA, default_kwargs={"gamma": 0.99, "lmbda": 0.65, "differentiable": False}
)
class RegularizedQLambdaEstimator(RegularizedTDLambdaEstimator):
    """Q(lambda) on rollouts ``[*B, T]``, once for each, from the Q-values that were recorded while acting.

    ``G_t = r_t + m_t + gamma (V(s_{t+1}) + lambda (G_{t+1} - V(s_{t+1}) - c_{t+1}))``, ``c_t = q(s_t, a_t) - V(s_t)``,
    where ``V`` is the regularizer's value and ``m_t`` the shaping's bonus. The correction ``c_t`` makes the
    regularized optimum the fixed point for any behaviour policy: for the entropy it is ``tau ln pi(a_t|s_t)``, so
    this is soft TD(lambda), and as ``tau -> 0`` it becomes the corrected hard form, not Peng's. All in reward units.

    ``estimator(rollout)`` writes ``value_target [*B, T, 1]``; a :class:`~torchrl_reg.objectives.QLearningLoss` with
    this estimator reads it from minibatches of the rows, and needs neither rewards nor next states there. The network
    is called for the states after the rollout's last steps alone, and after steps at which a time limit ended an
    episode; everything else was recorded.

    Source: Gallici et al., "Simplifying Deep Temporal Difference Learning", ICLR 2025 (PQN), whose published form is
    ``correct=False`` with :class:`~torchrl_reg.regularizers.HardMax` and ``time_limits_end=True``; Harutyunyan et al.
    2016 for the correction. Ours with a regularizer or a shaping.

    Args:
        gamma, lmbda: discount and trace parameter in [0, 1].
        correct: correct the trace for the actions taken. False takes ``c_t`` to be their share of the cost, which is 0
            for the maximum: Peng's Q(lambda), biased low by every action that is not greedy.
        time_limits_end: drop the bootstrap where an episode is truncated, too.
        value_network, regularizer, shaping: see :class:`RegularizedTD0Estimator`.

    >>> import torch
    >>> from torchrl.data import Categorical
    >>> from torchrl.modules import QValueActor
    >>> from torchrl_reg.objectives import QLearningLoss
    >>> loss = QLearningLoss(QValueActor(torch.nn.Linear(4, 3), spec=Categorical(3)), delay_value=False)
    >>> type(loss.make_value_estimator("regularized_qlambda", gamma=0.9, lmbda=0.5).value_estimator).__name__
    'RegularizedQLambdaEstimator'
    """

    needs_sequences = False  # a loss is given the rows of rollouts in any order
    writes_targets = True

    def __init__(self, *, correct: bool = True, time_limits_end: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.correct, self.time_limits_end = correct, time_limits_end

    @classmethod
    def check_head(cls, head: Head) -> None:
        if not head.expected:
            raise NotImplementedError(
                f"Targets of a rollout are expected values, so the head must be, got {type(head).__name__}."
            )

    @property
    def reward_key(self) -> NestedKey:
        return self.tensor_keys.value_target

    def next_state_keys(self, states: Sequence[NestedKey]) -> Sequence[NestedKey]:
        return ()

    def target(self, head: Head, data: TensorDictBase, action: Tensor | None, **_: Any) -> Target:
        """The ``value_target [*B, 1]`` that calling this estimator wrote into the rollout."""
        return Target(fast_get(data, self.tensor_keys.value_target))

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase, **params: Any) -> TensorDictBase:
        """Write ``value_target [*B, T, 1]``."""
        tensordict.set(self.tensor_keys.value_target, self.value_estimate(tensordict, **params))
        return tensordict

    def value_estimate(  # type: ignore[override]
        self, tensordict: TensorDictBase, params: TensorDictBase | None = None, **_: Any
    ) -> Tensor:
        """The targets ``[*B, T, 1]``."""
        keys, regularizer = self.tensor_keys, self.regularizer
        check_single_steps(tensordict, keys, "a lambda-return")
        q = fast_get(tensordict, keys.action_value)
        if q is None:
            q = self._q_values(tensordict, params)
        reward = fast_get(tensordict, ("next", keys.reward))
        time = _time_dim_of(reward, tensordict)
        reward, terminated, done = (
            each.squeeze(-1) for each in (reward, terminated_flag(tensordict, keys), done_flag(tensordict, keys))
        )
        ends = done | terminated
        dropped, mask = ends if self.time_limits_end else terminated, fast_get(tensordict, ("collector", "mask"))
        if mask is not None:  # the last step before padding ends its sequence, as a truncation does
            mask = _expanded(mask, ends.unsqueeze(-1)).squeeze(-1)
            ends = ends | ~mask.roll(-1, time)
        next_q = self._next_q(tensordict, q, ends if mask is None else ends & mask, dropped, time, params)
        here, there = (regularizer.at_states(states) for states in (tensordict, fast_get(tensordict, "next")))
        states = {name: torch.stack((here[name], there[name])) for name in here}
        values, logs = regularizer.value_and_log_policy(torch.stack((q, next_q)), **states)
        action = action_index(tensordict.get(keys.action), self.action_space, q.ndim - 1)
        correction = (
            gather_action(q, action) - values[0]
            if self.correct
            else gather_action(regularizer.step_cost(logs[0]), action)
        )
        if self.shaping is not None:
            reward = reward + self.shaping(q, logs[0], action, next_q=next_q, terminated=dropped)
        sequences = (reward, values[1].masked_fill(dropped, 0.0), correction, ends)
        returns = q_lambda_return(
            *(each.movedim(time, -1) for each in sequences),
            gamma=self.gamma,
            lmbda=self.lmbda,  # type: ignore[arg-type]
        ).movedim(-1, time)
        return (returns if mask is None else returns.masked_fill(~mask, 0.0)).unsqueeze(-1)

    def _next_q(
        self,
        tensordict: TensorDictBase,
        q: Tensor,
        ends: Tensor,
        dropped: Tensor,
        time: int,
        params: TensorDictBase | None,
    ) -> Tensor:
        """Q-values at s' ``[*B, T, A]``: those recorded one step later; of the network where an episode was cut."""
        next_q = q.roll(-1, time)
        cut = ends.clone()
        cut.select(time, -1).fill_(True)
        cut &= ~dropped  # values after a termination are dropped
        if 0 < tensordict.batch_dims < cut.ndim:  # the network is called for all agents of an environment
            cut = cut.flatten(tensordict.batch_dims).any(-1)
        if bool(cut.any()):
            following = fast_get(tensordict, "next")
            states = {key: fast_get(following, key)[cut] for key in self.value_network.in_keys}
            inner = inner_module(self.value_network, self.tensor_keys.action_value) if params is None else None
            if inner is not None:  # a third of the cost
                found = inner(*states.values())
            else:
                found = self._q_values(TensorDict(states, [int(cut.sum())]), params)
            next_q[cut] = found.to(q.dtype)
        return next_q
