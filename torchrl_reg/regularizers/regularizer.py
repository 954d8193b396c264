"""Regularizers: Q-values in, the regularized policy and its value out.

Shapes: ``*B`` batch, ``A`` actions.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_reg.functional import action_gap
from torchrl_reg.functional.temperature import at_least_float32
from torchrl_reg.regularizers.owner import CoefficientOwner
from torchrl_reg.regularizers.recorded import Recorded


class Regularized(NamedTuple):
    """The policy ``[*B, A]`` that maximizes ``<pi, q> - Omega(pi)``, and what it is worth; in reward units, except for
    ``pi``.

    Source: Geist et al. 2019 (A theory of regularized MDPs), whose ``Omega*`` is the value.
    """

    pi: Tensor
    """Probabilities ``[*B, A]``; 0 for a masked action."""
    cost: Tensor
    """``Omega(pi) [*B]``."""
    value: Tensor
    """``<pi, q> - Omega(pi) [*B]``, computed stably and not by that difference."""
    tau_log_pi: Tensor
    """``grad Omega(pi) - (<pi, grad Omega(pi)> - Omega(pi)) [*B, A]``, what a Munchausen term adds to the reward: of
    the entropy ``tau ln pi``. A masked action has ``-inf``, or the smallest finite number if that is how ``q`` masks.
    """
    action_cost: Tensor
    """``tau_log_pi`` where ``pi > 0``, else 0, ``[*B, A]``: each action's share of the cost."""


class Regularizer(Recorded, CoefficientOwner):
    """Base of the regularizers: ``regularizer(q)`` of ``q [*B, A]``, in reward units, gives a :class:`Regularized`.

    A regularizer owns its coefficients. One object serves the loss, the acting policy, exploration, evaluation and the
    planner: after ``regularizer.tau = 0.01`` all of them follow. A new one needs only :meth:`forward`, and
    ``coefficient_names = ("tau",)`` with ``self.tau = tau`` in its constructor if it has a temperature; it may override
    whatever it can compute more cheaply. :func:`check_regularizer` tests it.

    Of every regularizer ``tau_log_pi = grad Omega(pi) - (<pi, grad Omega(pi)> - Omega(pi))``, so that ``<pi,
    tau_log_pi> = Omega(pi)`` and ``q - value = tau_log_pi`` on the support of ``pi``; off it, where the gradient is a
    choice of subgradients, ``q - value <= tau_log_pi``. Added to the reward ``alpha`` times, it is mirror descent with
    Omega's Bregman divergence.
    """

    #: Whether the policy is deterministic: all on one action.
    greedy_policy: ClassVar[bool] = False
    #: The diagnostic that a learnt coefficient holds at a target, in nats.
    controlled: ClassVar[str] = "entropy"
    #: Whether the diagnostics compare with the target network's policy at s.
    compares: ClassVar[bool] = False
    #: Entries of a state that the policy depends on beside q, and the names of the losses it adds for a network of its
    #: own.
    in_keys: Sequence[NestedKey] = ()
    own_out_keys: Sequence[str] = ()

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        """The policy at ``q [*B, A]``; ``mask [*B, A]`` is True where an action is allowed."""
        raise NotImplementedError

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Only ``value [*B]`` and ``tau_log_pi [*B, A]``."""
        out = self(q)
        return out.value, out.tau_log_pi

    def value_and_policy(self, q: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Only ``value [*B]`` and ``pi [*B, A]``, which a search needs at every node it passes."""
        out = self(q, mask=mask)
        return out.value, out.pi

    def step_cost(self, tau_log_pi: Tensor) -> Tensor:
        """Each action's share of the cost ``[*B, A]``, also where ``pi`` vanishes: what a trace pays for an action."""
        return tau_log_pi

    def at_states(self, tensordict: TensorDictBase) -> dict[str, Tensor]:
        """Further arguments of the policy at these states: ``log_prior [*B, A]`` of a prior of the state, say."""
        return {}

    def own_losses(self, tensordict: TensorDictBase, tau_log_pi: Tensor, **also: Tensor) -> dict[str, Tensor]:
        """Losses ``[*B]`` of a network of its own, from the states and the online ``tau_log_pi [*B, A]`` there.

        ``also`` is what :meth:`at_states` gave there.
        """
        return {}

    def policy(self, q: Tensor) -> Tensor:
        """Probabilities ``[*B, A]``."""
        return self(q).pi

    def greedy(self, q: Tensor) -> Tensor:
        """The likeliest action ``[*B]``."""
        return q.argmax(-1)

    def diagnostics(
        self,
        q: Tensor,
        tau_log_pi: Tensor,
        *,
        reference: Tensor | None = None,
        rows: Tensor | None = None,
        log_prior: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Diagnostic rows ``[*B]`` at s, of the online ``q`` and its ``tau_log_pi`` (``[*B, A]``).

        ``reference`` is the ``tau_log_pi`` of the target network, where :attr:`compares` asks for it; ``rows [*B]``
        marks those that count (None: all); ``log_prior`` is that of a state-dependent prior.
        """
        out = self(q)
        gaps = {"action_gap": finite_action_gap(q), "soft_gap": out.value - q.amax(-1)}
        return {"entropy": torch.special.entr(out.pi).sum(-1)} | gaps

    def scalars(self) -> dict[str, Tensor]:
        """The current coefficients."""
        return {name: getattr(self, name) for name in self.coefficient_names}


def masked_values(q: Tensor, mask: Tensor | None) -> Tensor:
    """``q`` in at least float32, ``-inf`` where ``mask`` forbids the action."""
    q = at_least_float32(q)
    return q if mask is None else q.masked_fill(~mask, -torch.inf)


def finite_action_gap(q: Tensor) -> Tensor:
    """Best minus second best of ``q [*B, A]``, ``[*B]``; 0 where a mask leaves one action."""
    gap = action_gap(q)
    return torch.where(gap < torch.finfo(gap.dtype).max / 16, gap, 0.0)
