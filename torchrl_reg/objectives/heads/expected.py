"""The expected value: one number for each action."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.utils import distance_loss

from torchrl_reg.functional.munchausen import taken
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.objectives.heads.head import Head, Prediction, Regression, TargetValues
from torchrl_reg.regularizers import Regularized
from torchrl_reg.torchrl_compat import entry


class ExpectedValue(Head):
    """Q-values ``[*B, A]`` of any Q-network, by a distance of numbers: ``loss_function`` of the loss.

    The backup is ``sum_a pi(a|s') (q(s', a) - cost(a))``, in reward units.

    Source: Mnih et al. 2015 (DQN), whose ``pi`` is greedy and has no cost.
    """

    expected = True

    def check(self, network: Any, loss_function: str | None) -> None:
        """Any network that writes Q-values will do, and any distance."""

    def online(self, bound: Any, tensordict: TensorDictBase) -> Prediction:
        return Prediction(bound(tensordict))

    def q_values(self, z: Tensor, bound: Any, tensordict: TensorDictBase) -> Tensor:
        return z.detach()

    def target(self, bound: Any, tensordict: TensorDictBase, *, here: bool, here_counts: bool) -> TargetValues:
        if not here:
            next_q = bound(entry(tensordict, "next"))
            return TargetValues(None, next_q, next_q)
        q, next_q = bound.both(tensordict, here_counts=here_counts)
        return TargetValues(q, next_q, next_q)

    def backup(self, next_z: Tensor, policy: Regularized, bound: Any, *, greedy: bool) -> tuple[Tensor, Tensor | None]:
        return ((policy.pi * next_z).sum(-1) - policy.cost).unsqueeze(-1), None

    def regress(
        self, prediction: Prediction, action: Tensor, values: Tensor, masses: Tensor | None, **how: Any
    ) -> Regression:
        # Targets and priorities keep float32 where the network computes in half precision.
        value = at_least_float32(taken(prediction.z, action))
        goal = values.squeeze(-1).to(value.dtype)
        if how["loss_function"] in ("l2", "half_l2"):
            difference = value - goal
            square = difference.square()
            loss = square if how["loss_function"] == "l2" else 0.5 * square
            return Regression(loss, square.detach(), difference.detach())
        td_error = value.detach() - goal
        return Regression(distance_loss(value, goal, how["loss_function"]), td_error.square(), td_error)
