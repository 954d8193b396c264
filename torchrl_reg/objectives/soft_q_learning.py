"""Soft Q-learning over continuous actions: a sampled soft value, and a sampler trained by Stein's method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torch.nn import functional as F

from torchrl_reg.functional import soft_value_importance, svgd_bandwidth, svgd_direction
from torchrl_reg.functional.sampling import lattice_points
from torchrl_reg.objectives.actor_critic import ActorCriticLoss
from torchrl_reg.objectives.base import LossFunction
from torchrl_reg.regularizers.checks import check_temperature
from torchrl_reg.regularizers.coefficients import Coefficient, as_coefficient

Form = Literal["exact", "haarnoja2017"]
Proposal = Literal["lattice", "uniform", "actor"]


class SoftQLearningLoss(ActorCriticLoss):
    r"""``(r + gamma V(s') - Q(s, a))^2`` with a sampled soft value, and the sampler that draws from ``exp(Q / tau)``.

    .. math:: V(s') = \tau \ln \frac{1}{K} \sum_k \frac{\exp(Q_{target}(s', a_k) / \tau)}{p(a_k)}, \qquad
              \Delta u_i = \frac{1}{J} \sum_j \kappa(u_j, u_i) \nabla \ln p(u_j) + \nabla_{u_j} \kappa(u_j, u_i)

    The value integrates over actions scaled to ``[-1, 1]^D``. Its ``K`` actions are uniform (density ``2^-D``), either
    spread evenly over the box or drawn independently, or come from the actor if it has a density
    (:class:`~torchrl_reg.modules.FlowActor`). With few samples it is biased low, especially in many dimensions, see
    :func:`~torchrl_reg.functional.soft_value_importance`; watch ``ess``.

    The sampler's outputs before the squash, ``u``, follow the Stein variational direction of their target density,
    ``ln p(u) = Q / tau + ln |det d tanh(u) / du|``. Of the ``num_particles`` per state, half are fixed and push; the
    others move, and the push is propagated to the parameters. The kernel's bandwidth is that of the moving particles,
    so that few suffice (:func:`~torchrl_reg.functional.svgd_bandwidth`). ``form="haarnoja2017"`` follows the released
    code: the same correction, but gradients and kernel in action space, where the stationary density is instead
    ``exp(Q / tau) prod (1 - a_i^2)``, away from the bounds; its bandwidth is that between both halves.

    The sampler finds the modes, but their masses only where modes touch: the score, all that a Stein direction
    uses of the density, does not determine how mass divides among separated modes (see ``NEGATIVE_RESULTS.md``).

    Args:
        actor_network: the sampler, a :class:`~torchrl_reg.modules.StochasticSamplerActor` or a
            :class:`~torchrl_reg.modules.FlowActor`.
        qvalue_network: a critic, or a list of critics (of which the smallest value counts).
        tau: temperature > 0, in reward units; the published ``reward_scale`` is its inverse. Schedulable.
        num_value_samples: K, actions of the soft value per state.
        num_particles: particles of the sampler per state, an even number >= 4 (with fewer than two to push, it is
            plain gradient ascent).
        proposal: where the K actions come from: ``"lattice"`` (:func:`~torchrl_reg.functional.sampling.lattice_points`,
            randomly shifted per state: 8 do as well as 16 independent ones in up to 3 dimensions), ``"uniform"`` or
            ``"actor"``.
        form: ``"exact"`` or ``"haarnoja2017"``.
        loss_function, reduction, use_prioritized_weights, weight_reduction, diagnostics: see :class:`ActorCriticLoss`.

    Returns (in a TensorDict): ``loss_actor`` (its gradient is minus the Stein direction; its value is meaningless),
    ``loss_qvalue``, and detached scalars ``td_error`` (mean absolute), ``value`` (soft value of s'), ``ess`` (effective
    sample size of its K samples, 1 to K), ``spread`` (standard deviation of a state's particles on ``[-1, 1]``) and
    ``tau``. Writes the priority, the largest squared TD error of the critics ``[*B, 1]``.

    Raises:
        ValueError: a coefficient or number out of range, an actor that is not a sampler, ``proposal="actor"`` without
            a density, critics that do not read the action, stored actions outside the box (first batch).

    Source: Haarnoja, Tang, Abbeel, Levine, "Reinforcement Learning with Deep Energy-Based Policies", ICML 2017,
    eq. (10), (11), (13). The released code shares its K actions across the states of a batch; here each has its own.

    >>> import torch
    >>> from tensordict import TensorDict
    >>> from torchrl.modules import MLP, ValueOperator
    >>> from torchrl_reg.modules import StochasticSamplerActor
    >>> from torchrl_reg.objectives import PolyakTargetUpdate, SoftQLearningLoss
    >>> actor = StochasticSamplerActor(torch.nn.Identity(), 4, low=[-1.0] * 2, high=[1.0] * 2)
    >>> critic = ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"])
    >>> loss = SoftQLearningLoss(actor, critic, tau=0.1).make_value_estimator(gamma=0.99)
    >>> target_update = PolyakTargetUpdate(loss, rate=0.005)
    >>> data = actor(TensorDict({
    ...     "observation": torch.randn(8, 4),
    ...     "next": {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1),
    ...              "done": torch.zeros(8, 1, dtype=torch.bool),
    ...              "terminated": torch.zeros(8, 1, dtype=torch.bool)}}, [8]))
    >>> out = loss(data)
    >>> bool(1 <= out["ess"] <= 8)
    True
    """

    lattice: Tensor

    def __init__(
        self,
        actor_network: Any,
        qvalue_network: TensorDictModuleBase | Sequence[TensorDictModuleBase],
        *,
        tau: float | Coefficient = 1.0,
        num_value_samples: int = 8,
        num_particles: int = 4,
        proposal: Proposal = "lattice",
        form: Form = "exact",
        loss_function: LossFunction = "l2",
        **kwargs: Any,
    ) -> None:
        if not hasattr(actor_network, "particles"):
            raise ValueError(
                "actor_network must be a sampler, a StochasticSamplerActor or a FlowActor, got "
                f"{type(actor_network).__name__}."
            )
        if not isinstance(num_value_samples, int) or num_value_samples < 1:
            raise ValueError(f"num_value_samples must be an integer >= 1, got {num_value_samples!r}.")
        if not isinstance(num_particles, int) or num_particles < 4 or num_particles % 2:
            raise ValueError(
                "num_particles must be an even number >= 4 (half of them push the others, and fewer than two would be "
                f"plain gradient ascent), got {num_particles!r}."
            )
        for name, value, choices in (("proposal", proposal, get_args(Proposal)), ("form", form, get_args(Form))):
            if value not in choices:
                raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}.")
        if proposal == "actor" and not hasattr(actor_network, "get_dist"):
            raise ValueError(
                "proposal='actor' needs a sampler with a density, such as a FlowActor, got "
                f"{type(actor_network).__name__}."
            )
        tau = as_coefficient(tau, name="tau", check=check_temperature)
        super().__init__(actor_network, qvalue_network, tau=tau, loss_function=loss_function, **kwargs)
        self.num_value_samples, self.num_particles = num_value_samples, num_particles
        self.proposal, self.form = proposal, form
        lattice = lattice_points(num_value_samples, len(actor_network.low)).to(actor_network.low)
        self.register_buffer("lattice", lattice, persistent=False)
        self.make_value_estimator()

    def _diagnostic_keys(self) -> list[str]:
        return [*super()._diagnostic_keys(), "ess", "spread"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The losses and detached scalars; writes the priority ``[*B, 1]``."""
        data, mask = self._clean(tensordict)
        _, prediction = self._predicted(data)
        with torch.no_grad():
            value, ess = self._soft_value(data, data.get("next"))
            target = self._one_step_target(data, value)
        loss_qvalue, td_error = self._critic_loss(tensordict, prediction, target, mask)
        loss_actor, spread = self._stein_loss(data)
        losses = {"loss_qvalue": loss_qvalue, "loss_actor": loss_actor}
        rows = {"td_error": td_error.abs().mean(0), "value": value, "ess": ess, "spread": spread}
        return self._output(data, losses, mask, rows, {}, weighted=["loss_qvalue"])

    def _soft_value(self, tensordict: TensorDictBase, states: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Soft value of the target critics at ``states`` ``[*B]``, and the effective sample size ``[*B]``."""
        actor = self._bound(tensordict, "actor_network")[0].network
        critics = self._bound(tensordict, "qvalue_network")[1]
        low, high = actor.low, actor.high
        if self.proposal == "actor":
            u, log_p = actor.particles(states, self.num_value_samples)
            action = actor.squashed(u)
        else:
            even = self.proposal == "lattice"  # one draw shifts all its points
            shape = (*states.batch_size, 1 if even else self.num_value_samples, len(low))
            uniform = torch.rand(shape, dtype=low.dtype, device=low.device)
            if even:
                uniform = (self.lattice + uniform) % 1
            action, log_p = low + (high - low) * uniform, -len(low) * math.log(2)
        return soft_value_importance(self._q(critics, states, action).amin(0), self.tau, log_p)

    def _stein_loss(self, states: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Rows ``[*B]`` whose gradient is minus the mean direction of the moving particles, and the spread of all."""
        actor = self._bound(states, "actor_network")[0].network
        critics = self._detached_critics(states)
        half = self.num_particles // 2
        with torch.no_grad():
            fixed_u, _ = actor.particles(states, half)
        moving_u, _ = actor.particles(states, half)
        exact = self.form == "exact"
        fixed, updated = (fixed_u, moving_u) if exact else (fixed_u.tanh(), moving_u.tanh())

        def log_density(x: Tensor) -> Tensor:
            if exact:
                action, log_det = actor.squashed(x), 2 * (math.log(2) - x - F.softplus(-2 * x)).sum(-1)
            else:
                action = actor.low + (actor.high - actor.low) * (1 + x) / 2
                log_det = (1 - x.square() + 1e-6).log().sum(-1)
            return (self._q(critics, states, action).amin(0) / self.tau + log_det).sum()

        score = torch.func.grad(log_density)(fixed)
        with torch.no_grad():
            moving = updated.detach()
            bandwidth = svgd_bandwidth(moving) if exact else svgd_bandwidth(fixed, moving)
            direction = svgd_direction(fixed, score, moving, bandwidth)
            spread = torch.cat((fixed_u, moving_u), -2).tanh().std(-2).mean(-1)
        return -(direction * updated).sum(-1).mean(-1), spread
