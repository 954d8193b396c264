"""Flow policies, and the latent space of one as an action space."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn import functional as F
from torchrl.data import Bounded, Composite, TensorSpec
from torchrl.envs import Transform
from torchrl.envs.utils import ExplorationType, exploration_type

from torchrl_reg.modules.box_actor import Bound, BoxActor, box_bounds, clamped_atanh, log_sech2, squashed, unsquashed
from torchrl_reg.modules.q_actors import explores


class Coupling(NamedTuple):
    """One affine coupling at given states: ``y = x exp(s) + t`` on the free dimensions, the others pass.

    Args:
        max_log_scale: bound of ``|s|``.
        hidden: ``[*B, H]`` what the state adds to the hidden units.
        kept: ``[D]`` one where a dimension passes (and conditions the others), zero where it is free.
        weight_in, weight_out, bias: ``[H, D]``, ``[2 D, H]``, ``[2 D]`` weights of the coupling net.
    """

    max_log_scale: float
    hidden: Tensor
    kept: Tensor
    weight_in: Tensor
    weight_out: Tensor
    bias: Tensor

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``s, t [*S, *B, D]``, zero on the kept dimensions; the free dimensions of ``x`` have no influence."""
        hidden = (self.hidden + F.linear(x * self.kept, self.weight_in)).relu()
        s, t = F.linear(hidden, self.weight_out, self.bias).chunk(2, -1)
        free = 1 - self.kept
        return free * self.max_log_scale * (s / self.max_log_scale).tanh(), free * t


class FlowDistribution(Distribution):
    r"""``a = low + (high - low) (1 + tanh(u)) / 2`` with ``u`` a RealNVP of a standard normal, conditioned on a state.

    .. math:: \ln p(a) = \ln N(z; 0, I) - \sum_l \sum_d s_{l,d}
              - \sum_d \ln\Big(\frac{high_d - low_d}{2} (1 - \tanh^2 u_d)\Big)

    where :math:`u = \mathrm{atanh}(2 (a - low)/(high - low) - 1)`, ``z`` is its inverse image, ``s`` the log-scales.

    Source: Dinh et al. 2017 (RealNVP), with the tanh of Haarnoja et al. 2018 (SAC).

    Get it from :meth:`FlowActor.get_dist`. Log-densities are of actions in their own units (nats; positive values are
    possible). ``atanh`` is clamped at ``1 - eps`` with ``eps`` 1e-6 (1e-12 in float64): an action at a bound, or
    rounded to it, has the density at ``|u| = atanh(1 - eps)``, finite.

    Args:
        couplings: the layers, base first.
        low, high: ``[D]`` bounds.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(self, couplings: Sequence[Coupling], low: Tensor, high: Tensor) -> None:
        self.couplings, self.low, self.high = list(couplings), low, high
        hidden = self.couplings[0].hidden
        self._base_shape = hidden.shape[:-1] + low.shape
        super().__init__(hidden.shape[:-1], Size(low.shape), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The box."""
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Exact log-density ``[*S, *B]`` of actions ``[*S, *B, D]``, through the analytic inverse.

        Raises:
            ValueError: ``value`` of another width.
        """
        if value.shape[-1:] != self._event_shape:
            raise ValueError(f"value must have shape [*B, {self._event_shape[0]}], got {list(value.shape)}.")
        u = unsquashed(value.to(self.low.dtype), self.low, self.high)
        z, log_det = self.to_base(u)
        return _standard_normal(z) - log_det - self.squash_log_det(u)

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Reparametrized actions ``[*S, *B, D]`` and their log-density, without going through the inverse."""
        return self._push(torch.randn(*sample_shape, *self._base_shape, dtype=self.low.dtype, device=self.low.device))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Reparametrized actions ``[*S, *B, D]``."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions ``[*S, *B, D]``."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def deterministic_sample(self) -> Tensor:
        """The image ``[*B, D]`` of the base's mode ``z = 0``. **Not the mode** of the density of actions."""
        return self._push(torch.zeros(self._base_shape, dtype=self.low.dtype, device=self.low.device))[0]

    @property
    def mean(self) -> NoReturn:
        raise NotImplementedError("A flow policy has no closed-form mean: average samples instead.")

    # No entropy() here: TorchRL's PPO and A2C sample it where a class defines none (-log_prob has its exact gradient
    # along reparametrized actions).

    def before_squash(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``u [*S, *B, D]`` of base points ``z`` under the layers alone, and ``ln |det du/dz| [*S, *B]``."""
        u, log_det = z, torch.zeros_like(z[..., 0])
        for coupling in self.couplings:
            s, t = coupling.scale_and_shift(u)
            u = u * s.exp() + t
            log_det = log_det + s.sum(-1)
        return u, log_det

    def to_base(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The base point ``z [*S, *B, D]`` whose image before the squash is ``u``, and ``ln |det du/dz| [*S, *B]``."""
        z, log_det = u, torch.zeros_like(u[..., 0])
        for coupling in reversed(self.couplings):
            s, t = coupling.scale_and_shift(z)
            z = (z - t) * (-s).exp()
            log_det = log_det + s.sum(-1)
        return z, log_det

    def _push(self, z: Tensor) -> tuple[Tensor, Tensor]:
        u, log_det = self.before_squash(z)
        return squashed(u, self.low, self.high), _standard_normal(z) - log_det - self.squash_log_det(u)

    def squash_log_det(self, u: Tensor) -> Tensor:
        """``sum_d ln((high - low) / 2 (1 - tanh(u)^2)) [*S, *B]``, of the map from ``u`` to the action."""
        return (log_sech2(u) + ((self.high - self.low) / 2).log()).sum(-1)


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)


class FlowActor(BoxActor):
    """Acts with ``a = low + (high - low) (1 + tanh(u)) / 2``, ``u`` from a state-conditional RealNVP of ``N(0, I_D)``.

    As in QUINOA, the features of the state enter every coupling net (one hidden layer of ``num_cells`` ReLU units).
    Layers keep the even and the odd dimensions in turn. Log-scales are bounded by ``max_log_scale``. The last layers
    start at zero, so the policy starts as the image of a standard normal under the tanh. With one action dimension
    nothing is left to couple: each layer is an affine map of it that depends on the state only, hence a tanh-normal.

    Source: Dinh et al. 2017 (RealNVP, 1605.08803).

    Writes the action ``[*B, D]`` (reparametrized) and ``action_log_prob [*B]`` (a log-density, nats). Random
    exploration samples; deterministic exploration takes the image of the base's mode, **not the mode** of the
    density; ``ExplorationType.MEAN`` is not available.

    Args:
        torso: from the in-keys to features ``[*B, num_features]``.
        num_features: their number F.
        low, high: bounds of the actions, numbers or ``[D]`` (two numbers: D = 1).
        num_layers: couplings L; at least 2 are needed to move every dimension.
        num_cells: hidden units of each coupling net.
        max_log_scale: bound of the log-scale of each layer, > 0.
        in_keys: observation keys. Default ``("observation",)``.
        action_key: where the action goes; the log-probability goes to the same with ``_log_prob`` appended.

    Attributes:
        stored_action_key: what a loss reads from replay (the action).

    Raises:
        ValueError: no torso, an unbounded or empty box, sizes < 1, ``max_log_scale`` <= 0, one layer for several
            dimensions.

    >>> from tensordict import TensorDict
    >>> actor = FlowActor(nn.Linear(4, 16), 16, low=[-1.0, -2.0], high=[1.0, 2.0])
    >>> td = actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))
    >>> td["action"].shape, actor.get_dist(td).log_prob(td["action"]).shape
    (torch.Size([8, 2]), torch.Size([8]))
    """

    distribution_class = FlowDistribution
    kept: Tensor

    def __init__(
        self,
        torso: nn.Module,
        num_features: int,
        *,
        low: Bound,
        high: Bound,
        num_layers: int = 4,
        num_cells: int = 64,
        max_log_scale: float = 2.0,
        in_keys: Sequence[NestedKey] = ("observation",),
        action_key: NestedKey = "action",
    ) -> None:
        super().__init__(torso, in_keys, action_key)
        low, high = box_bounds(low, high)
        dims = len(low)
        if min(num_features, num_layers, num_cells) < 1:
            sizes = f"{num_features}, {num_layers} and {num_cells}"
            raise ValueError(f"num_features, num_layers and num_cells must be >= 1, got {sizes}.")
        if num_layers < 2 <= dims:
            raise ValueError(f"num_layers must be at least 2 for {dims} action dimensions, got {num_layers}.")
        if not max_log_scale > 0:
            raise ValueError(f"max_log_scale must be > 0, got {max_log_scale}.")
        self.max_log_scale = float(max_log_scale)
        parity = (torch.arange(dims) + torch.arange(num_layers).unsqueeze(-1)) % 2
        kept = parity.to(low.dtype) if dims > 1 else torch.zeros(num_layers, 1, dtype=low.dtype)
        self.register_buffer("kept", kept, persistent=False)
        self.features = nn.Linear(num_features, num_layers * num_cells)
        self.weight_in = nn.Parameter(torch.empty(num_layers, num_cells, dims))
        self.weight_out = nn.Parameter(torch.empty(num_layers, 2 * dims, num_cells))
        self.bias_out = nn.Parameter(torch.empty(num_layers, 2 * dims))
        self.reset_parameters()
        self._hold_box(low, high)

    def reset_parameters(self) -> None:
        """Draw the couplings anew, as the constructor does; the torso and the features reset themselves."""
        limit = 1 / math.sqrt(self.weight_in.shape[-1])
        nn.init.uniform_(self.weight_in, -limit, limit)
        nn.init.zeros_(self.weight_out)
        nn.init.zeros_(self.bias_out)

    def reset_parameters_recursive(self, parameters: TensorDictBase | None = None) -> TensorDictBase | None:
        """As in TensorDict, which resets only the children of a module: here the couplings, too."""
        reset = super().reset_parameters_recursive(parameters)
        with nullcontext() if reset is None else reset.to_module(self, preserve_module_state=False):
            self.reset_parameters()
        return reset

    def get_dist(self, tensordict: TensorDictBase) -> FlowDistribution:
        """The policy at the observations of ``tensordict``, which is left as it is."""
        hidden = self.features(self._torso_outputs(tensordict)).chunk(len(self.kept), -1)
        layers = (each.unbind() for each in (self.kept, self.weight_in, self.weight_out, self.bias_out))
        couplings = [Coupling(self.max_log_scale, *parts) for parts in zip(hidden, *layers, strict=True)]
        return FlowDistribution(couplings, self.low, self.high)

    def particles(self, tensordict: TensorDictBase, count: int) -> tuple[Tensor, Tensor]:
        """``count`` samples ``u`` before the squash at each state, and their log-densities.

        ``[*B, count, D]`` and ``[*B, count]`` (nats); the density is that of ``tanh(u)`` on ``[-1, 1]^D``.
        """
        dist = self.get_dist(tensordict)
        z = torch.randn(count, *dist.batch_shape, len(self.low), dtype=self.low.dtype, device=self.low.device)
        u, log_det = dist.before_squash(z)
        return u.movedim(0, -2), (_standard_normal(z) - log_det - log_sech2(u).sum(-1)).movedim(0, -1)

    def acted(self, state: Any) -> dict[NestedKey, Tensor]:
        dist = self.get_dist(state)
        if explores():
            action, log_prob = dist.rsample_and_log_prob()
        else:
            action = dist.mean if exploration_type() is ExplorationType.MEAN else dist.deterministic_sample
            log_prob = dist.log_prob(action)
        return {self.action_key: action, self.log_prob_key: log_prob}


class LatentActionTransform(Transform):
    r"""Steps the environment with ``a = f(z, s)`` of a frozen flow, ``z = atanh(h)``, at the action ``h`` of a policy.

    ``h [*B, D]`` lies in ``[-1, 1]^D``; what the policy above writes before its own squash is ``z``, so stacked layers
    compose without a squash between them, and as each is invertible the policy above can still play any action. It sees
    a latent space in which a standard normal ``z`` already does what the flow has learnt: a fresh :class:`FlowActor`
    above acts exactly as the flow below. Whatever loss trains the policy above: its data hold ``h``.

    The densities are related by :math:`\ln p(a|s) = \ln p(h|s) - \ln |\det da/dh|`, see :func:`stacked_log_prob`.

    Args:
        flow: the policy below. A copy of it, torso included, is kept, without gradients.

    Raises:
        ValueError: no :class:`FlowActor`; at the environment, an action space of another size or smaller bounds.
        KeyError: data without what the flow reads.

    Source: Haarnoja, Hartikainen, Abbeel, Levine, "Latent Space Policies for Hierarchical Reinforcement Learning", ICML
    2018.

    >>> from torchrl_reg.envs import EnvSettings, make_env
    >>> flow = FlowActor(torch.nn.Linear(3, 8), 8, low=[-2.0], high=[2.0])
    >>> env = make_env(EnvSettings("pendulum"), num_envs=2).append_transform(LatentActionTransform(flow))
    >>> env.full_action_spec_unbatched["action"].space.high, env.rollout(3)["action"].shape
    (tensor([1.]), torch.Size([2, 3, 1]))
    """

    def __init__(self, flow: FlowActor) -> None:
        if not isinstance(flow, FlowActor):
            raise ValueError(f"flow must be a FlowActor, got {type(flow).__name__}.")
        key = flow.action_key
        super().__init__(in_keys=[], out_keys=[], in_keys_inv=[key], out_keys_inv=[key])
        self.flow = copy.deepcopy(flow).requires_grad_(False).eval()

    def action(self, tensordict: TensorDictBase, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The action ``[*B, D]`` of ``h = latent [*B, D]`` at these states, and ``ln |det da/dh| [*B]``."""
        z, dist = clamped_atanh(latent), self.flow.get_dist(tensordict)
        u, log_det = dist.before_squash(z)
        return self.flow.squashed(u), log_det + dist.squash_log_det(u) - log_sech2(z).sum(-1)

    def latent(self, tensordict: TensorDictBase, action: Tensor) -> tuple[Tensor, Tensor]:
        """The ``h [*B, D]`` whose action at these states is ``action [*B, D]``, and ``ln |det da/dh| [*B]``."""
        u, dist = unsquashed(action, self.flow.low, self.flow.high), self.flow.get_dist(tensordict)
        z, log_det = dist.to_base(u)
        return z.tanh(), log_det + dist.squash_log_det(u) - log_sech2(z).sum(-1)

    def play(self, actor: Any, tensordict: TensorDictBase) -> TensorDictBase:
        """Acts in the environment itself: ``actor`` writes ``h [*B, D]``, which is replaced by its action."""
        tensordict = actor(tensordict)
        with torch.no_grad():
            action, _ = self.action(tensordict, tensordict.get(self.flow.action_key))
        return tensordict.set(self.flow.action_key, action)

    def transform_action_spec(self, action_spec: TensorSpec) -> TensorSpec:
        """``[-1, 1]^D`` in place of the environment's bounds."""
        key = self.in_keys_inv[0]
        spec = action_spec[key] if isinstance(action_spec, Composite) else action_spec
        self._check_fit(spec)
        box = Bounded(-1.0, 1.0, shape=spec.shape, dtype=spec.dtype, device=spec.device)
        if not isinstance(action_spec, Composite):
            return box
        action_spec[key] = box
        return action_spec

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        missing = [key for key in self.flow.in_keys if tensordict.get(key, None) is None]
        if missing:
            raise KeyError(f"data must have {', '.join(map(repr, missing))}, which the flow reads, got none.")
        key = self.in_keys_inv[0]
        with torch.no_grad():
            action, _ = self.action(tensordict, tensordict.get(key))
        return tensordict.set(key, action)

    def _check_fit(self, spec: Any) -> None:
        dims = len(self.flow.low)
        space: Any = getattr(spec, "space", None)
        if spec.shape[-1:] != (dims,):
            size = spec.shape[-1] if spec.shape else "no dimension"
            raise ValueError(f"flow must have the environment's action size {size}, got {dims}.")
        if not hasattr(space, "low"):
            raise ValueError(f"flow needs an environment with a box of actions, got {type(spec).__name__}.")
        low, high = (bound.to(self.flow.low).expand(spec.shape) for bound in (space.low, space.high))
        slack = 1e-4 * (high - low)
        if (self.flow.low < low - slack).any() or (self.flow.high > high + slack).any():
            raise ValueError(
                f"flow must act within the environment's bounds, got {self.flow.low.tolist()} to "
                f"{self.flow.high.tolist()} for {low.reshape(-1, dims)[0].tolist()} to "
                f"{high.reshape(-1, dims)[0].tolist()}."
            )


def stacked_log_prob(
    tensordict: TensorDictBase, action: Tensor, actor: Any, transforms: Sequence[LatentActionTransform]
) -> Tensor:
    r"""Log-density of an environment's actions under a policy on top of latent layers.

    .. math:: \ln p(a|s) = \ln \pi(h_n|s) - \sum_i \ln |\det dh_{i-1} / dh_i|, \qquad h_0 = a

    Args:
        tensordict: the states, with all that the layers and the policy read.
        action: actions of the environment ``[*B, D]``.
        actor: the policy on top, with ``get_dist``.
        transforms: the layers, from the environment upwards.

    Returns:
        Log-densities ``[*B]``, in nats.

    Source: Haarnoja et al. 2018 (Latent space policies), eq. (9).
    """
    log_det = torch.zeros_like(action[..., 0])
    for transform in transforms:
        action, step = transform.latent(tensordict, action)
        log_det = log_det + step
    return actor.get_dist(tensordict).log_prob(action) - log_det
