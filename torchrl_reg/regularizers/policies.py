"""Slot 1 as objects: the maximum, entropy, Tsallis, and a Boltzmann policy whose value has no entropy term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from torchrl_reg.functional import soft_policy, soft_value_and_log_policy, soft_value_and_policy
from torchrl_reg.functional.soft import finite_action_gap, masked_values, temperature_and_divisor
from torchrl_reg.regularizers.checks import check_number, check_temperature
from torchrl_reg.regularizers.coefficients import Coefficient, CoefficientOwner, as_coefficient, coefficient


class SavedArguments:
    """Mixin that stores the constructor's arguments, from which ``load_policy`` builds the module again."""

    #: A saved policy may name this class.
    is_rebuildable: ClassVar[bool] = True
    #: The arguments of the constructor, positional and by name.
    built_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        instance = super().__new__(cls)
        instance.__dict__["built_with"] = (args, kwargs)
        return instance


class Regularized(NamedTuple):
    """The policy ``[*B, A]`` that maximizes ``<pi, q> - Omega(pi)``, and what it is worth.

    All but ``pi`` is in reward units.

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


class Regularizer(SavedArguments, CoefficientOwner):
    """Base of the regularizers: ``regularizer(q)`` of ``q [*B, A]``, in reward units, gives a :class:`Regularized`.

    A regularizer owns its coefficients. One object serves the loss, the acting policy, exploration, evaluation and the
    planner: after ``regularizer.tau = 0.01`` all of them follow. A new one needs only :meth:`forward`, and
    ``coefficient_names = ("tau",)`` with ``self.tau = tau`` in its constructor if it has a temperature; it may override
    methods that it can compute more cheaply. :func:`check_regularizer` tests it.

    Of every regularizer ``tau_log_pi = grad Omega(pi) - (<pi, grad Omega(pi)> - Omega(pi))``, so that ``<pi,
    tau_log_pi> = Omega(pi)`` and ``q - value = tau_log_pi`` on the support of ``pi``; off it, where the gradient is a
    choice of subgradients, ``q - value <= tau_log_pi``. Added to the reward ``alpha`` times, it is mirror descent with
    Omega's Bregman divergence.
    """

    #: True if the policy is deterministic: all on one action.
    greedy_policy: ClassVar[bool] = False
    #: Names of the :meth:`diagnostics`, besides ``kl`` where :attr:`reports_target_kl`.
    diagnostic_keys: ClassVar[tuple[str, ...]] = ("entropy", "action_gap", "soft_gap")
    #: The diagnostic that a learnt coefficient holds at a target, in nats.
    dual_statistic: ClassVar[str] = "entropy"
    #: True if the diagnostics compare with the target network's policy at s.
    reports_target_kl: ClassVar[bool] = False
    #: True if rows ``[S, B, A]`` of several losses may be computed at once: no state but the coefficients, and no
    #: diagnostic row that depends on another. Not inherited by subclasses.
    stackable: ClassVar[bool] = False
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
        """Losses ``[*B]`` of its own network, from the states and the online ``tau_log_pi [*B, A]`` there.

        ``also`` is what :meth:`at_states` gave there.
        """
        return {}

    def policy(self, q: Tensor) -> Tensor:
        """Probabilities ``[*B, A]``."""
        pi: Tensor = self(q).pi
        return pi

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

        An override that returns others lists them in :attr:`diagnostic_keys`.

        ``reference`` is the ``tau_log_pi`` of the target network, given where :attr:`reports_target_kl`; ``rows [*B]``
        marks those that count (None: all); ``log_prior`` is that of a state-dependent prior.
        """
        out = self(q)
        gaps = {"action_gap": finite_action_gap(q), "soft_gap": out.value - q.amax(-1)}
        return {"entropy": torch.special.entr(out.pi).sum(-1)} | gaps


def check_regularizer(regularizer: Regularizer, *, num_actions: int = 4, tolerance: float = 1e-8) -> None:
    """Raise unless ``regularizer`` is what :class:`Regularizer` defines, at random ``q [B, A]`` (reward units).

    ``<pi, q> - cost = value``, ``<pi, tau_log_pi> = cost``, ``q - value = tau_log_pi`` on the support of ``pi`` and at
    most that off it, ``action_cost`` is ``tau_log_pi`` on the support and 0 off it, the short forms agree, and a masked
    action has probability 0; all in float64. For the tests of custom regularizers.

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


class HardMax(Regularizer):
    """``Omega = 0``: the value is the maximum and the policy the first greedy action.

    ``tau_log_pi = q - max q`` (of ``q [*B, A]``, in reward units), the limit of ``tau ln pi`` as ``tau -> 0``: minus
    the advantage gap. A Munchausen term with it is advantage learning.

    Source: Watkins 1989 (Q-learning); Vieillard et al. 2020 (Munchausen RL) for the limit.

    >>> out = HardMax()(torch.tensor([[1.0, 3.0, 2.0]]))
    >>> out.pi.tolist(), out.value.tolist(), out.tau_log_pi.tolist()
    ([[0.0, 1.0, 0.0]], [3.0], [[-2.0, 0.0, -1.0]])
    """

    greedy_policy = stackable = True
    diagnostic_keys = ("action_gap",)
    scalar_form = "hard_max"

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = masked_values(q, mask)
        best = q.amax(-1, keepdim=True)
        pi = (q.argmax(-1, keepdim=True) == torch.arange(q.shape[-1], device=q.device)).to(q.dtype)
        nothing = self.step_cost(q)
        return Regularized(pi, nothing[..., 0], best.squeeze(-1), q - best, nothing)

    def step_cost(self, tau_log_pi: Tensor) -> Tensor:
        return torch.zeros_like(tau_log_pi)

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        q = masked_values(q, None)
        best = q.amax(-1, keepdim=True)
        return best.squeeze(-1), q - best

    def diagnostics(self, q: Tensor, tau_log_pi: Tensor, **_: Any) -> dict[str, Tensor]:
        """``action_gap`` alone: its policy has no entropy."""
        return {"action_gap": finite_action_gap(q)}


class Entropy(Regularizer):
    """``Omega(pi) = -tau H(pi)``: ``pi = softmax(q / tau)``, ``value = tau logsumexp(q / tau)``, of ``q [*B, A]``.

    Args:
        tau: temperature > 0 in reward units, or a :class:`Coefficient` that learns it. ``regularizer.tau = 0.01``
            assigns to it.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Haarnoja et al., "Reinforcement Learning with Deep Energy-Based Policies", ICML 2017.

    >>> entropy = Entropy(0.5)
    >>> out = entropy(torch.zeros(1, 3))
    >>> [round(x, 4) for x in (*out.pi[0].tolist(), *out.value.tolist(), *out.cost.tolist())]
    [0.3333, 0.3333, 0.3333, 0.5493, -0.5493]
    """

    coefficient_names = ("tau",)
    reports_target_kl = stackable = True
    tau = coefficient("tau_coefficient", "The current temperature, in reward units.")
    scalar_form = "entropy"

    def __init__(self, tau: float | Coefficient = 0.03) -> None:
        super().__init__()
        self.tau_coefficient = as_coefficient(tau, name="tau", check=check_temperature)

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        value, tau_log_pi = self.value_and_log_policy(masked_values(q, mask))
        pi = (tau_log_pi / temperature_and_divisor(self.tau, tau_log_pi.dtype)[1]).exp()
        action_cost = torch.where(pi > 0, tau_log_pi, 0.0)
        return Regularized(pi, (pi * action_cost).sum(-1), value, tau_log_pi, action_cost)

    def policy(self, q: Tensor) -> Tensor:
        return soft_policy(q, self.tau)

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return soft_value_and_log_policy(q, self.tau)

    def value_and_policy(self, q: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return soft_value_and_policy(masked_values(q, mask), self.tau)

    def diagnostics(
        self, q: Tensor, tau_log_pi: Tensor, *, reference: Tensor | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """``entropy`` and ``kl`` to the target's policy (nats), ``action_gap`` and ``soft_gap`` (reward units)."""
        # A masked action has probability 0 and an infinite logarithm: floored, so that 0 * inf stays 0.
        floor = torch.finfo(tau_log_pi.dtype).min / 4
        both = tau_log_pi.unsqueeze(0) if reference is None else torch.stack((tau_log_pi, reference))
        logs = (both / self.tau).clamp(min=floor)
        log_pi = logs[0]
        pi = log_pi.exp()
        rows = {"entropy": -(pi * log_pi).sum(-1), "action_gap": finite_action_gap(q)}
        if reference is not None:
            rows["kl"] = (pi * (log_pi - logs[1])).sum(-1)
        return rows | {"soft_gap": -tau_log_pi.amax(-1)}


class Boltzmann(Entropy):
    """``pi = softmax(q / tau)`` as for :class:`Entropy`, but ``value = <pi, q>``: values without an entropy term.

    ``q [*B, A]`` is in reward units. This policy is evaluated but maximizes no objective: it is VIREL's, whose
    temperature is driven to 0. At a constant ``tau`` the fixed point is that of the softmax operator, which is not a
    contraction. So its ``tau_log_pi``, ``tau ln pi``, is not that of its cost, 0.

    Args:
        tau: temperature > 0 in reward units, or a :class:`Coefficient` that learns it.

    Raises:
        ValueError: ``tau`` not a finite number > 0.

    Source: Fellows et al., "VIREL", NeurIPS 2019.

    >>> out = Boltzmann(0.5)(torch.tensor([[0.0, 1.0]]))
    >>> [round(x, 4) for x in (*out.pi[0].tolist(), *out.value.tolist(), *out.cost.tolist())]
    [0.1192, 0.8808, 0.8808, 0.0]
    """

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = masked_values(q, mask)
        value, tau_log_pi = self.value_and_log_policy(q)
        pi = soft_policy(q, self.tau)
        return Regularized(pi, torch.zeros_like(value), value, tau_log_pi, torch.zeros_like(pi))

    def value_and_log_policy(self, q: Tensor) -> tuple[Tensor, Tensor]:
        return self.value_and_policy(q)[0], super().value_and_log_policy(q)[1]

    def value_and_policy(self, q: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q = masked_values(q, mask)
        pi = soft_policy(q, self.tau)
        # A masked action has probability 0, but its value may be infinite.
        return (pi * torch.where(pi > 0, q, 0.0)).sum(-1), pi

    def step_cost(self, tau_log_pi: Tensor) -> Tensor:
        return torch.zeros_like(tau_log_pi)

    def diagnostics(self, q: Tensor, tau_log_pi: Tensor, **also: Any) -> dict[str, Tensor]:
        """As :class:`Entropy`; ``soft_gap`` is ``<pi, q> - max q``, 0 or less."""
        return super().diagnostics(q, tau_log_pi, **also) | {"soft_gap": self.value_and_policy(q)[0] - q.amax(-1)}


class Tsallis(Regularizer):
    """``Omega(pi) = tau (sum_a pi(a)^q - 1) / (q (q - 1))``: ``pi = [(q - 1) (x / tau - c)]_+^{1 / (q - 1)}``.

    ``x [*B, A]`` are the action values, ``q`` the entropic index.

    ``q = 2`` is sparsemax, in closed form: ``Omega = (tau / 2) (sum pi^2 - 1)``, ``pi = [x / tau - c]_+``, one-hot as
    soon as the best action leads by ``tau``. Any other ``q > 1`` finds ``c`` by bisection; ``q -> 1`` is the entropy.

    The deformed logarithm ``tau_log_pi = tau (pi^{q-1} - sum pi^q) / (q - 1) + Omega`` is ``grad Omega`` shifted so
    that ``<pi, tau_log_pi> = Omega``: with it the Munchausen term is mirror descent with Omega's Bregman divergence.
    For ``q = 2`` it lies in ``[-tau, 0]``, so a clip at or below ``-tau`` never acts.

    Args:
        tau: temperature > 0 in reward units, or a :class:`Coefficient`.
        q: entropic index > 1.

    Raises:
        ValueError: ``tau`` not a finite number > 0, ``q`` not a finite number > 1.

    Source: Martins and Astudillo, "From Softmax to Sparsemax", ICML 2016; Lee, Choi, Oh, "Sparse Markov Decision
    Processes with Causal Sparse Tsallis Entropy Regularization", RA-L 2018 (this scale at q = 2).

    >>> out = Tsallis(1.0)(torch.tensor([0.5, 0.0, -2.0]))
    >>> out.pi.tolist(), out.value.tolist()
    ([0.75, 0.25, 0.0], 0.5625)
    """

    coefficient_names = ("tau",)
    diagnostic_keys = (*Regularizer.diagnostic_keys, "support")
    stackable = True
    tau = coefficient("tau_coefficient", "The current temperature, in reward units.")

    def __init__(self, tau: float | Coefficient = 0.03, q: float = 2.0) -> None:
        super().__init__()
        self.tau_coefficient = as_coefficient(tau, name="tau", check=check_temperature)
        self.q = check_number(q, "q", "the entropic index, above 1")
        if self.q <= 1:
            raise ValueError(f"q must be > 1 (its limit 1 is Entropy), got {q!r}.")

    @property
    def scalar_form(self) -> str | None:
        """See :mod:`torchrl_reg.planning.scalar_search`."""
        return "sparsemax" if self.q == 2 else None

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        x = masked_values(q, mask)
        best = x.amax(-1, keepdim=True)
        # In units of tau, relative to the best action; actions more than 1 / (q - 1) below it have probability 0.
        z = ((x - best) / temperature_and_divisor(self.tau, x.dtype)[1]).clamp(min=-2.0 / (self.q - 1))
        pi = self._sparsemax(z) if self.q == 2 else self._entmax(z)
        # Not pi ** (q - 1) itself, whose gradient at 0 is infinite for q < 2.
        power = torch.where(pi > 0, pi, 1.0).pow(self.q - 1) * (pi > 0)
        total = (pi * power).sum(-1, keepdim=True)
        omega = (total - 1) / (self.q * (self.q - 1))
        tau_log_pi = self.tau * ((power - total) / (self.q - 1) + omega)
        action_cost = torch.where(pi > 0, tau_log_pi, 0.0)
        gaps = torch.where(pi > 0, x - best, 0.0)
        value = best + (pi * gaps).sum(-1, keepdim=True) - self.tau * omega
        return Regularized(pi, self.tau * omega.squeeze(-1), value.squeeze(-1), tau_log_pi, action_cost)

    @staticmethod
    def _sparsemax(z: Tensor) -> Tensor:
        ordered = z.sort(-1, descending=True).values
        count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        sums = ordered.cumsum(-1) - 1
        support = (count * ordered > sums).sum(-1, keepdim=True).clamp(min=1)  # 0 in a row of NaN
        return (z - sums.gather(-1, support - 1) / support).clamp(min=0)

    def _entmax(self, z: Tensor) -> Tensor:
        scaled = (self.q - 1) * z
        low, high = torch.full_like(scaled[..., :1], -1.0), torch.zeros_like(scaled[..., :1])
        for _ in range(60):  # halvings: past the last bit of float64
            middle = (low + high) / 2
            too_much = (scaled - middle).clamp(min=0).pow(1 / (self.q - 1)).sum(-1, keepdim=True) > 1
            low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
        power, threshold, fixed = 1 / (self.q - 1), (low + high) / 2, scaled.detach()
        above = fixed > threshold
        # The threshold moves with the values so that the sum stays at 1; the halvings themselves have no gradient.
        slope = torch.where(above, fixed - threshold, 1.0).pow(power - 1) * above
        threshold = threshold + (slope * (scaled - fixed)).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        pi = torch.where(above, scaled - threshold, 1.0).pow(power) * above
        return pi / pi.sum(-1, keepdim=True)

    def diagnostics(self, q: Tensor, tau_log_pi: Tensor, **_: Any) -> dict[str, Tensor]:
        """``entropy`` (nats), ``support`` (share of actions), ``action_gap`` and ``soft_gap`` (reward units)."""
        support = (self.policy(q) > 0).to(tau_log_pi.dtype).mean(-1)
        return super().diagnostics(q, tau_log_pi) | {"support": support}
