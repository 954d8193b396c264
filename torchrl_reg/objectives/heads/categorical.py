"""A categorical distribution of the return on a fixed grid of atoms (C51)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrl_reg.functional import categorical_projection
from torchrl_reg.functional.soft import at_least_float32
from torchrl_reg.modules import CategoricalQActor
from torchrl_reg.objectives.heads.head import Head, Prediction, Regression, of_action
from torchrl_reg.regularizers import Regularized


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
    traces = False

    def backup(self, next_z: Tensor, policy: Regularized, bound: Any, *, greedy: bool) -> tuple[Tensor, Tensor | None]:
        support = bound.inner.support
        if greedy:  # A times less to project
            masses = at_least_float32(of_action(next_z, policy.pi.argmax(-1))).softmax(-1)
            return support.to(masses.dtype).expand_as(masses), masses
        masses = at_least_float32(next_z).softmax(-2) * policy.pi.unsqueeze(-2)
        atoms = support.to(masses.dtype).unsqueeze(-1) - policy.action_cost.unsqueeze(-2)
        return atoms.flatten(-2), masses.flatten(-2)

    def regress(
        self, prediction: Prediction, action: Tensor, values: Tensor, masses: Tensor | None, **how: Any
    ) -> Regression:
        assert masses is not None
        support = how["bound"].inner.support
        log_p = at_least_float32(of_action(prediction.z, action)).log_softmax(-1)
        with torch.no_grad():
            p, masses = log_p.exp(), masses / masses.sum(-1, keepdim=True)
            projected = categorical_projection(values, masses, support).to(p.dtype)
            mean = (masses * values).sum(-1)
            td_error = clipped = None
            if how["reports"]:
                td_error = (p * support.to(p.dtype)).sum(-1) - mean
                clipped = torch.where(_outside(values, support), masses, 0.0).sum(-1)
        # NaN for an infinite reward, which the grid would clip to its end, and the run would go on.
        elementwise = -(projected * log_p).sum(-1) + (mean - mean)
        return Regression(elementwise, elementwise.detach().clone(), td_error, clipped)


def _outside(values: Tensor, support: Tensor) -> Tensor:
    """Values beyond the ends of ``support``, by more than a rounding error."""
    slack = 1e-3 * (support[1] - support[0])
    return (values < support[0] - slack) | (values > support[-1] + slack)
