"""Slot 3 as objects: expected values, implicit and fixed quantiles, atoms; chosen by the actor handed to a loss."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import QValueActor
from torchrl.objectives.utils import distance_loss

from torchrl_reg.compat import fast_get
from torchrl_reg.functional import categorical_projection, quantile_huber_loss
from torchrl_reg.functional.soft import at_least_float32, gather_action
from torchrl_reg.modules import CategoricalQActor, FixedQuantileQActor, QuantileQActor
from torchrl_reg.modules.q_actors import fraction_dtype
from torchrl_reg.objectives.binding import BoundQNetwork
from torchrl_reg.regularizers import Regularized
from torchrl_reg.regularizers.checks import as_number, check_flag


class TargetOutputs(NamedTuple):
    """Outputs of the target network."""

    q: Tensor | None
    """Q-values ``[*B, A]`` at s; None where it was not read there."""
    next_q: Tensor
    """Q-values behind the policy at s' ``[*B, A]``."""
    next_z: Tensor
    """The values that are backed up from s': ``[*B, A]``, or ``[*B, M, A]``."""


class Prediction(NamedTuple):
    """The online network's outputs at s, with gradient."""

    z: Tensor
    """``[*B, A]``, or ``[*B, N, A]``."""
    fractions: Tensor | None = None
    """Quantile fractions of the N, if they were drawn."""


class Target(NamedTuple):
    """The regression target, and the terms at s that it was computed from."""

    values: Tensor
    """``[*B, M]``, in reward units."""
    masses: Tensor | None = None
    """Probabilities ``[*B, M]`` of the values; None: equal."""
    bonus: Tensor | None = None
    """Of the shaping ``[*B]``, in reward units."""
    tau_log_pi: Tensor | None = None
    """Scaled log-policy at s ``[*B, A]`` behind the bonus, or without one behind the trace."""


class Regression(NamedTuple):
    """Distance of the prediction from its target."""

    elementwise: Tensor
    """Losses ``[*B]``."""
    priority: Tensor
    """Priorities ``[*B]``, detached."""
    td_error: Tensor | None
    """Difference of the means ``[*B]``, detached; None where it is not reported and would cost something."""
    clipped_mass: Tensor | None = None
    """Share of the target's mass that lies outside the grid ``[*B]``; None without a grid, or where not reported."""


class Head:
    """Base of the heads: reads the network at (s, a), backs up values from s', and measures the distance.

    As written here it reads networks with ``outputs(observation) [*B, N, A]``.
    """

    #: The actor whose network this head reads.
    actor_type: ClassVar[type] = QValueActor
    #: Names of what it reports besides the TD error.
    diagnostic_keys: ClassVar[tuple[str, ...]] = ()
    #: True if reading it draws random numbers.
    draws: ClassVar[bool] = False
    #: True if values at successive steps can be mixed in a lambda-return.
    supports_lambda_returns: ClassVar[bool] = True
    #: True if the value is one number, so that the regularizer's own value is the backup.
    expected: ClassVar[bool] = False

    @property
    def stackable(self) -> bool:
        """True if several losses may be computed as one; a head that draws then overrides :meth:`sample_fractions`."""
        return not self.draws

    def sample_fractions(self, rows: int, *, here: bool, double: bool, like: Tensor) -> dict[str, Tensor]:
        """The random numbers of one pass over ``rows`` rows, in its order; it takes them from data that have them.

        ``here``: the target network is read at s, too; ``double``: the online network is read at s', too; ``like`` has
        their dtype and device.
        """
        return {}

    def check(self, network: Any, loss_function: str | None) -> None:
        """Refuse a network of another head, or a ``loss_function`` where the head has its own distance.

        Raises:
            ValueError: the network is of another kind.
            TypeError: ``loss_function`` is not None.
        """
        if not isinstance(network, self.actor_type):
            article = "an" if self.actor_type.__name__[0] in "AEIOU" else "a"
            raise ValueError(
                f"value_network must be {article} {self.actor_type.__name__}, got {type(network).__name__}."
            )
        if loss_function is not None:
            raise TypeError(
                f"loss_function must be None, as the distance is that of {type(self).__name__}, got {loss_function!r}."
            )

    def outputs(self, bound: BoundQNetwork, tensordict: TensorDictBase) -> Prediction:
        """The online network's outputs at the states of ``tensordict``."""
        return Prediction(bound.inner.outputs(*bound.inputs(tensordict)))

    def q_values(self, z: Tensor, bound: BoundQNetwork, tensordict: TensorDictBase) -> Tensor:
        """Q-values ``[*B, A]`` of outputs ``z`` at ``tensordict``, forbidden actions masked."""
        return bound.allowed(bound.inner.mean(z.detach()), tensordict)

    def target_outputs(self, bound: BoundQNetwork, tensordict: TensorDictBase, *, here: bool) -> TargetOutputs:
        """The target network's outputs at s' and, with ``here``, at s."""
        following, outputs = fast_get(tensordict, "next"), bound.inner.outputs
        if not here:
            next_z = outputs(*bound.inputs(following))
            return TargetOutputs(None, self.q_values(next_z, bound, following), next_z)
        z, next_z = bound.both(tensordict, call=outputs)
        return TargetOutputs(self.q_values(z, bound, tensordict), self.q_values(next_z, bound, following), next_z)

    def next_online_q(self, bound: BoundQNetwork, tensordict: TensorDictBase) -> Tensor:
        """Q-values ``[*B, A]`` of the online network at s', for double Q-learning."""
        following = fast_get(tensordict, "next")
        return self.q_values(self.outputs(bound, following).z, bound, following)

    def backup(
        self, next_z: Tensor, policy: Regularized, bound: BoundQNetwork, *, greedy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """``sum_a pi(a|s') (z(s', a) - cost(a))`` as values ``[*B, M]`` and their masses (None: equal).

        ``greedy``: the policy is all on one action.
        """
        raise NotImplementedError

    def regress(
        self,
        prediction: Prediction,
        action: Tensor,
        target: Target,
        *,
        bound: BoundQNetwork,
        loss_function: str,
        reports: bool,
    ) -> Regression:
        """Distance of the outputs at the indices ``action [*B]`` from ``target``; ``bound`` is the target network.

        ``loss_function`` names the distance of an expected value; distributions have their own. ``reports``: the TD
        error is wanted.
        """
        raise NotImplementedError


def gather_outputs(z: Tensor, action: Tensor) -> Tensor:
    """Entries ``[*B, N]`` of ``z [*B, N, A]`` at the indices ``action [*B]``."""
    return z.gather(-1, action[..., None, None].expand(*z.shape[:-1], 1)).squeeze(-1)


class ExpectedValue(Head):
    """Q-values ``[*B, A]`` of any Q-network, by a distance of numbers: ``loss_function`` of the loss.

    The backup is ``sum_a pi(a|s') (q(s', a) - cost(a))``, in reward units.

    Source: Mnih et al. 2015 (DQN), whose ``pi`` is greedy and has no cost.
    """

    expected = True

    def check(self, network: Any, loss_function: str | None) -> None:
        """Any network that writes Q-values will do, and any distance."""

    def outputs(self, bound: Any, tensordict: TensorDictBase) -> Prediction:
        return Prediction(bound(tensordict))

    def q_values(self, z: Tensor, bound: Any, tensordict: TensorDictBase) -> Tensor:
        return z.detach()

    def target_outputs(self, bound: Any, tensordict: TensorDictBase, *, here: bool) -> TargetOutputs:
        if not here:
            next_q = bound(fast_get(tensordict, "next"))
            return TargetOutputs(None, next_q, next_q)
        q, next_q = bound.both(tensordict)
        return TargetOutputs(q, next_q, next_q)

    def backup(self, next_z: Tensor, policy: Regularized, bound: Any, *, greedy: bool) -> tuple[Tensor, Tensor | None]:
        return ((policy.pi * next_z).sum(-1) - policy.cost).unsqueeze(-1), None

    def regress(
        self, prediction: Prediction, action: Tensor, target: Target, *, loss_function: str, **_: Any
    ) -> Regression:
        # Targets and priorities keep float32 where the network computes in half precision.
        value = at_least_float32(gather_action(prediction.z, action))
        goal = target.values.squeeze(-1).to(value.dtype)
        if loss_function in ("l2", "half_l2"):
            difference = value - goal
            square = difference.square()
            loss = square if loss_function == "l2" else 0.5 * square
            return Regression(loss, square.detach(), difference.detach())
        td_error = value.detach() - goal
        return Regression(distance_loss(value, goal, loss_function), td_error.square(), td_error)


class Categorical(Head):
    """The atoms of a :class:`~torchrl_reg.modules.CategoricalQActor`, by cross-entropy.

    The backup is the law of the regularized return itself: the mixture over actions, each action's atoms moved by its
    share of the cost, ``z_i - cost(a')`` with mass ``pi(a'|s') p_i(s', a')``; then projected on the grid. With the
    policy of a regularizer all those moved distributions have one mean, the regularized value. Logits are ``[*B, N,
    A]``, atoms in reward units, the loss in nats.

    Source: Bellemare, Dabney, Munos, "A Distributional Perspective on Reinforcement Learning", ICML 2017; the mixture
    is ours.
    """

    actor_type = CategoricalQActor
    diagnostic_keys = ("clipped_mass",)
    supports_lambda_returns = False

    def backup(
        self, next_z: Tensor, policy: Regularized, bound: BoundQNetwork, *, greedy: bool
    ) -> tuple[Tensor, Tensor | None]:
        support = bound.inner.support
        if greedy:  # A times less to project
            masses = at_least_float32(gather_outputs(next_z, policy.pi.argmax(-1))).softmax(-1)
            return support.to(masses.dtype).expand_as(masses), masses
        masses = at_least_float32(next_z).softmax(-2) * policy.pi.unsqueeze(-2)
        atoms = support.to(masses.dtype).unsqueeze(-1) - policy.action_cost.unsqueeze(-2)
        return atoms.flatten(-2), masses.flatten(-2)

    def regress(
        self, prediction: Prediction, action: Tensor, target: Target, *, bound: BoundQNetwork, reports: bool, **_: Any
    ) -> Regression:
        assert target.masses is not None
        values, masses, support = target.values, target.masses, bound.inner.support
        log_p = at_least_float32(gather_outputs(prediction.z, action)).log_softmax(-1)
        with torch.no_grad():
            p, masses = log_p.exp(), masses / masses.sum(-1, keepdim=True)
            projected = categorical_projection(values, masses, support).to(p.dtype)
            mean = (masses * values).sum(-1)
            td_error = clipped = None
            if reports:
                td_error = (p * support.to(p.dtype)).sum(-1) - mean
                clipped = torch.where(_outside(values, support), masses, 0.0).sum(-1)
        # NaN for an infinite reward, which the grid would clip to its end, and the run would go on.
        elementwise = -(projected * log_p).sum(-1) + (mean - mean)
        return Regression(elementwise, elementwise.detach().clone(), td_error, clipped)


def _outside(values: Tensor, support: Tensor) -> Tensor:
    """Values beyond the ends of ``support``, by more than a rounding error."""
    slack = 1e-3 * (support[1] - support[0])
    return (values < support[0] - slack) | (values > support[-1] + slack)


#: Entries of data that hold fractions ``[*B, N]`` (or ``[1, N]``) sampled before: of the online and target networks.
ONLINE, HERE, NEXT, DOUBLE = "_fractions_online", "_fractions_here", "_fractions_next", "_fractions_double"
#: With more fractions than that, computing several losses together is no faster (tests/README.md).
MAX_STACKED_FRACTIONS = 16


class Quantiles(Head):
    """Base of the quantile heads: the average over actions and the quantile Huber loss.

    Args:
        kappa: half-width of the Huber loss's quadratic part >= 0, in reward units.
        absolute_priority: the priority is ``sum_i mean_j |target_j - z_i|`` instead of the row's loss.

    Raises:
        ValueError: ``kappa`` negative.
    """

    def __init__(self, kappa: float = 1.0, absolute_priority: bool = False) -> None:
        number = as_number(kappa)
        if number is None or not 0 <= number < float("inf"):
            raise ValueError(f"kappa must be >= 0 and finite (reward units), got {kappa!r}.")
        self.kappa, self.absolute_priority = number, check_flag(absolute_priority, "absolute_priority")

    def backup(
        self, next_z: Tensor, policy: Regularized, bound: BoundQNetwork, *, greedy: bool
    ) -> tuple[Tensor, Tensor | None]:
        net_of_cost = at_least_float32(next_z) - policy.action_cost.unsqueeze(-2)
        return (policy.pi.unsqueeze(-2) * net_of_cost).sum(-1), None

    def regress(self, prediction: Prediction, action: Tensor, target: Target, *, reports: bool, **_: Any) -> Regression:
        z, fractions, values = gather_outputs(prediction.z, action), prediction.fractions, target.values
        if fractions is None:
            count, dtype = z.shape[-1], at_least_float32(z).dtype
            fractions = (torch.arange(count, device=z.device, dtype=dtype) + 0.5) / count
        td_error = z.detach().mean(-1) - values.mean(-1) if reports else None
        elementwise = quantile_huber_loss(z, fractions.expand_as(z), values, self.kappa)
        priority = elementwise.detach().clone()
        if self.absolute_priority:
            priority = (values.unsqueeze(-2) - z.detach().unsqueeze(-1)).abs().mean(-1).sum(-1)
        return Regression(elementwise, priority, td_error)


class FixedQuantiles(Quantiles):
    """The quantiles of a :class:`~torchrl_reg.modules.FixedQuantileQActor`, ``[*B, N, A]`` at ``(i + 1/2) / N``.

    Source: Dabney, Rowland, Bellemare, Munos, "Distributional RL with Quantile Regression", AAAI 2018.

    Args:
        kappa: half-width of the Huber loss's quadratic part >= 0, in reward units.
        absolute_priority: the priority is ``sum_i mean_j |target_j - z_i|`` instead of the row's loss.

    Raises:
        ValueError: ``kappa`` negative.
    """

    actor_type = FixedQuantileQActor


class ImplicitQuantiles(Quantiles):
    """Quantiles ``[*B, N, A]`` of a :class:`~torchrl_reg.modules.QuantileQActor` at uniformly drawn fractions.

    The backup is ``sum_a pi(a|s') (z_j(s', a) - cost(a))``, quantile by quantile.

    Source: Dabney, Ostrovski, Silver, Munos, "Implicit Quantile Networks", ICML 2018.

    Args:
        num_quantiles: N, fractions of the prediction. num_target_quantiles: M, of the target.
        num_policy_quantiles: K, of the policy's Q-values.
        kappa: half-width of the Huber loss's quadratic part >= 0, in reward units.
        reuse_quantiles: take the policy at s' from the M target quantiles already drawn, instead of K fresh ones.
        share_fractions: draw one set of fractions for the whole batch (faster: one embedding for all rows).
        absolute_priority: the priority is ``sum_i mean_j |target_j - z_i|`` instead of the row's loss.

    Raises:
        ValueError: a count < 1, ``kappa`` negative.
    """

    actor_type = QuantileQActor
    draws = True
    supports_lambda_returns = False

    def __init__(
        self,
        *,
        num_quantiles: int = 64,
        num_target_quantiles: int = 64,
        num_policy_quantiles: int = 32,
        kappa: float = 1.0,
        reuse_quantiles: bool = False,
        share_fractions: bool = False,
        absolute_priority: bool = False,
    ) -> None:
        super().__init__(kappa, absolute_priority)
        counts = (num_quantiles, num_target_quantiles, num_policy_quantiles)
        if any(type(count) is not int or count < 1 for count in counts):
            raise ValueError(f"The numbers of quantiles must be integers >= 1, got {counts}.")
        self.num_quantiles, self.num_target_quantiles, self.num_policy_quantiles = counts
        self.reuse_quantiles, self.share_fractions = reuse_quantiles, share_fractions

    @property
    def stackable(self) -> bool:
        return max(self.num_quantiles, self.num_target_quantiles) <= MAX_STACKED_FRACTIONS

    def sample_fractions(self, rows: int, *, here: bool, double: bool, like: Tensor) -> dict[str, Tensor]:
        policy, extra = self.num_policy_quantiles, 0 if self.reuse_quantiles else self.num_policy_quantiles
        counts = {ONLINE: self.num_quantiles, HERE: policy * here, NEXT: self.num_target_quantiles + extra}
        counts[DOUBLE] = policy * double
        first = 1 if self.share_fractions else rows
        return {
            name: torch.rand((first, count), device=like.device, dtype=like.dtype)
            for name, count in counts.items()
            if count
        }

    def fractions(self, features: Tensor, count: int) -> Tensor:
        """``count`` uniform fractions for each row of ``features [*B, F]`` (``[*B, count]``), or for all."""
        shape = (count,) if self.share_fractions else (*features.shape[:-1], count)
        return torch.rand(shape, device=features.device, dtype=fraction_dtype(features))

    def _fractions(self, tensordict: TensorDictBase, name: str, features: Tensor, count: int) -> Tensor:
        given = fast_get(tensordict, name)
        return self.fractions(features, count) if given is None else given

    def outputs(self, bound: BoundQNetwork, tensordict: TensorDictBase) -> Prediction:
        net = bound.inner.network
        features = net.features(*bound.inputs(tensordict))
        fractions = self._fractions(tensordict, ONLINE, features, self.num_quantiles)
        return Prediction(net.quantiles(features, fractions), fractions)

    def q_values(self, z: Tensor, bound: BoundQNetwork, tensordict: TensorDictBase) -> Tensor:
        return bound.allowed(z.detach().mean(-2), tensordict)

    def target_outputs(self, bound: BoundQNetwork, tensordict: TensorDictBase, *, here: bool) -> TargetOutputs:
        net, following = bound.inner.network, fast_get(tensordict, "next")
        states = bound.both(tensordict, call=net.features) if here else (net.features(*bound.inputs(following)),)
        # At s' those of the target come first, then those behind the policy.
        count, extra = self.num_target_quantiles, 0 if self.reuse_quantiles else self.num_policy_quantiles
        counts = (self.num_policy_quantiles, count + extra)[-len(states) :]
        parts = zip((HERE, NEXT)[-len(states) :], states, counts, strict=True)
        fractions = [self._fractions(tensordict, name, features, n) for name, features, n in parts]
        # Layers with batch statistics must see the states separately, and a custom network may lack quantiles_of.
        apart = bound.mixes_rows or not hasattr(net, "quantiles_of")
        *at_s, z = map(net.quantiles, states, fractions) if apart else net.quantiles_of(states, fractions)
        next_z, behind = (z, z) if self.reuse_quantiles else z.split((count, extra), -2)
        q = self.q_values(at_s[0], bound, tensordict) if at_s else None
        return TargetOutputs(q, self.q_values(behind, bound, following), next_z)

    def next_online_q(self, bound: BoundQNetwork, tensordict: TensorDictBase) -> Tensor:
        net, following = bound.inner.network, fast_get(tensordict, "next")
        features = net.features(*bound.inputs(following))
        z = net.quantiles(features, self._fractions(tensordict, DOUBLE, features, self.num_policy_quantiles))
        return self.q_values(z, bound, following)


def head_of(network: Any) -> type[Head]:
    """The class of head that reads a Q-value actor; an expected value for any other network."""
    kinds = (ImplicitQuantiles, FixedQuantiles, Categorical)
    return next((kind for kind in kinds if isinstance(network, kind.actor_type)), ExpectedValue)
