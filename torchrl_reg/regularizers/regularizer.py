"""Regularizers: Q-values in, the regularized policy and its value out.

Shapes: ``*B`` batch, ``A`` actions.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_reg.functional.munchausen import finite_action_gap
from torchrl_reg.regularizers.coefficient import CoefficientOwner
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

    #: True if the policy is deterministic: all on one action.
    greedy_policy: ClassVar[bool] = False
    #: The diagnostic that a learnt coefficient holds at a target, in nats.
    controlled: ClassVar[str] = "entropy"
    #: True if the diagnostics compare with the target network's policy at s.
    compares: ClassVar[bool] = False
    #: True if rows ``[S, B, A]`` of several losses may be computed at once: no state but the coefficients, and no
    #: diagnostic row that depends on another. A subclass says it anew.
    stackable: ClassVar[bool] = False
    #: Entries of a state that the policy depends on beside q, and the names of the losses it adds for a network of its
    #: own.
    in_keys: Sequence[NestedKey] = ()
    own_out_keys: Sequence[str] = ()

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        """The policy at ``q [*B, A]``; ``mask [*B, A]`` is True where an action is allowed."""
        raise NotImplementedError

    def cost_range(self, num_actions: int) -> float:
        """``(max Omega - min Omega) / tau`` over all policies ``[A]``, which a temperature with a guarantee needs.

        Raises:
            ValueError: this regularizer does not say.
        """
        raise ValueError(
            f"tau must be a number where {type(self).__name__} has no cost_range(num_actions), got a loss."
        )

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


def check_regularizer(regularizer: Regularizer, *, num_actions: int = 4, tolerance: float = 1e-8) -> None:
    """Raise unless ``regularizer`` is what :class:`Regularizer` defines, at random ``q [B, A]`` (reward units).

    ``<pi, q> - cost = value``, ``<pi, tau_log_pi> = cost``, ``q - value = tau_log_pi`` on the support of ``pi`` and at
    most that off it, ``action_cost`` is ``tau_log_pi`` on the support and 0 off it, the short forms agree, and a masked
    action has probability 0; all in float64. For the test of a regularizer of one's own.

    Source: Geist et al. 2019 (A theory of regularized MDPs).

    Raises:
        ValueError: what does not hold, and by how much.

    >>> from torchrl_reg.regularizers import Entropy
    >>> check_regularizer(Entropy(0.5))
    """
    q = 2 * torch.randn(256, num_actions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = q.to(next((c.value.device for c in regularizer.coefficients().values()), q.device))
    with torch.no_grad():
        out = regularizer(q)
        support, gap = out.pi > 0, q - out.value.unsqueeze(-1)
        taken = torch.where(support, out.tau_log_pi, 0.0)
        value, tau_log_pi = regularizer.value_and_log_policy(q)
        searched, pi = regularizer.value_and_policy(q)
        policy = regularizer.policy(q)
        masked = regularizer(q, mask=torch.arange(num_actions, device=q.device).expand_as(q) > 0)
    zero = torch.zeros_like(q)
    claims: dict[str, tuple[Tensor, Tensor]] = {
        "a pi that sums to one": (out.pi.sum(-1), torch.ones_like(out.cost)),
        "no negative pi": (out.pi.clamp(max=0.0), zero),
        "<pi, q> - cost as its value": (out.value, (out.pi * q).sum(-1) - out.cost),
        "<pi, tau_log_pi> as its cost": ((out.pi * taken).sum(-1), out.cost),
        "tau_log_pi = q - value on the support": (taken, torch.where(support, gap, 0.0)),
        "tau_log_pi >= q - value off the support": ((gap - out.tau_log_pi).where(~support, zero), zero),
        "action_cost = tau_log_pi on the support, and 0 off it": (out.action_cost, taken),
        "one value in forward and value_and_log_policy": (value, out.value),
        "one tau_log_pi in forward and value_and_log_policy": (tau_log_pi, out.tau_log_pi),
        "one value in forward and value_and_policy": (searched, out.value),
        "one pi in forward and value_and_policy": (pi, out.pi),
        "one pi in forward and policy": (policy, out.pi),
        "a pi of 0 at a masked action": (masked.pi[:, 0], 0 * out.cost),
        "a pi that sums to one under a mask": (masked.pi.sum(-1), torch.ones_like(out.cost)),
    }
    for claim, (found, expected) in claims.items():
        excess = found - expected if claim.endswith("off the support") else (found - expected).abs()
        worst = float(torch.where(found == expected, 0.0, excess).max())
        if not worst <= tolerance:
            name = type(regularizer).__name__
            raise ValueError(f"{name} must have {claim}, got a difference of {worst:.3g}.")
