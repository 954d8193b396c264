"""Quantiles of the return: at fractions drawn anew each time (IQN), or at fixed ones (QR-DQN).

The backup averages over actions quantile by quantile (the comonotone average of M-IQN), one target quantile for each of
the target network's. The mixture over actions, the law of the return itself, has the same mean and a larger variance.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor

from torchrl_reg.functional import quantile_huber_loss
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules import FixedQuantileQActor, QuantileQActor
from torchrl_reg.objectives.heads.head import Head, Prediction, Regression, TargetValues, of_action
from torchrl_reg.regularizers import Regularized
from torchrl_reg.regularizers.checks import as_number, check_flag
from torchrl_reg.torchrl_compat import entry

#: Entries of data that hold fractions ``[*B, N]`` (or ``[1, N]``) drawn before: of the online and target networks.
ONLINE, HERE, NEXT, DOUBLE = "_fractions_online", "_fractions_here", "_fractions_next", "_fractions_double"
#: With more fractions than that, computing several losses together is no faster (tests/README.md).
MOST_STACKED = 16


class Quantiles(Head):
    """What both quantile heads share: the average over actions and the quantile Huber loss.

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

    def backup(self, next_z: Tensor, policy: Regularized, bound: Any, *, greedy: bool) -> tuple[Tensor, Tensor | None]:
        net_of_cost = at_least_float32(next_z) - policy.action_cost.unsqueeze(-2)
        return (policy.pi.unsqueeze(-2) * net_of_cost).sum(-1), None

    def regress(
        self, prediction: Prediction, action: Tensor, values: Tensor, masses: Tensor | None, **how: Any
    ) -> Regression:
        z, fractions = of_action(prediction.z, action), prediction.fractions
        if fractions is None:
            count, dtype = z.shape[-1], at_least_float32(z).dtype
            fractions = (torch.arange(count, device=z.device, dtype=dtype) + 0.5) / count
        td_error = z.detach().mean(-1) - values.mean(-1) if how["reports"] else None
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
    traces = False

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
        return max(self.num_quantiles, self.num_target_quantiles) <= MOST_STACKED

    def drawn(self, rows: int, *, here: bool, double: bool, like: Tensor) -> dict[str, Tensor]:
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
        return torch.rand(shape, device=features.device, dtype=features.dtype)

    def _fractions(self, tensordict: TensorDictBase, name: str, features: Tensor, count: int) -> Tensor:
        given = entry(tensordict, name)
        return self.fractions(features, count) if given is None else given

    def online(self, bound: Any, tensordict: TensorDictBase) -> Prediction:
        net = bound.inner.network
        features = net.features(*bound.inputs(tensordict))
        fractions = self._fractions(tensordict, ONLINE, features, self.num_quantiles)
        return Prediction(net.quantiles(features, fractions), fractions)

    def q_values(self, z: Tensor, bound: Any, tensordict: TensorDictBase) -> Tensor:
        return bound.allowed(z.detach().mean(-2), tensordict)

    def target(self, bound: Any, tensordict: TensorDictBase, *, here: bool, here_counts: bool) -> TargetValues:
        net, following = bound.inner.network, entry(tensordict, "next")
        if here:
            states = bound.both(tensordict, here_counts=here_counts, call=net.features)
        else:
            states = (net.features(*bound.inputs(following)),)
        # At s' those of the target come first, then those behind the policy.
        count, extra = self.num_target_quantiles, 0 if self.reuse_quantiles else self.num_policy_quantiles
        counts = (self.num_policy_quantiles, count + extra)[-len(states) :]
        parts = zip((HERE, NEXT)[-len(states) :], states, counts, strict=True)
        drawn = [self._fractions(tensordict, name, features, n) for name, features, n in parts]
        # Layers with batch statistics have to see the states apart, and a network of the user's may know no other way.
        apart = bound.mixes_rows or not hasattr(net, "quantiles_of")
        *at_s, z = map(net.quantiles, states, drawn) if apart else net.quantiles_of(states, drawn)
        next_z, behind = (z, z) if self.reuse_quantiles else z.split((count, extra), -2)
        q = self.q_values(at_s[0], bound, tensordict) if at_s else None
        return TargetValues(q, self.q_values(behind, bound, following), next_z)

    def next_online_q(self, bound: Any, tensordict: TensorDictBase) -> Tensor:
        net, following = bound.inner.network, entry(tensordict, "next")
        features = net.features(*bound.inputs(following))
        z = net.quantiles(features, self._fractions(tensordict, DOUBLE, features, self.num_policy_quantiles))
        return self.q_values(z, bound, following)
