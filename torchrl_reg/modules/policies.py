"""Policies and value networks for continuous actions from a few settings, sized by an environment's specs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.envs import EnvBase
from torchrl.modules import MLP, ValueOperator

from torchrl_reg.modules.box_actor import gaussian_actor
from torchrl_reg.modules.flow import FlowActor
from torchrl_reg.modules.multicategorical import AutoregressiveMulticategoricalActor, MulticategoricalActor
from torchrl_reg.modules.networks import initialize_weights
from torchrl_reg.modules.rebuilding import rebuildable
from torchrl_reg.modules.sampler_actor import StochasticSamplerActor

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU, "silu": nn.SiLU}


@dataclass
class PolicySettings:
    """A policy on a box of actions.

    Args:
        name: ``"multicategorical"`` (independent bins per dimension), ``"autoregressive"`` (bins that depend on the
            dimensions before), ``"flow"`` (RealNVP), ``"gaussian"`` (tanh-normal) or ``"sampler"`` (a network of state
            and noise, without a density; for soft Q-learning).
        num_cells: widths of the fully connected hidden layers.
        num_bins: bins per dimension, end-points included (multicategorical, autoregressive).
        activation: ``"relu"``, ``"tanh"``, ``"elu"`` or ``"silu"``.
        initialization: ``"default"`` (PyTorch's), ``"glorot_uniform"`` or ``"variance_scaling"``, of these layers.
        head_cells: hidden units per action dimension of the autoregressive head.
        condition: False cuts the dependence between dimensions (autoregressive).
        flow_layers, flow_cells, max_log_scale: couplings, hidden units of each, bound of their log-scales (flow).
        scale_mapping, scale_lb: map to positive scales and their lower bound (gaussian).
        skip: the noise is added to the network's output (sampler).
    """

    is_rebuildable: ClassVar[bool] = True

    name: str = "multicategorical"
    num_cells: list[int] = field(default_factory=lambda: [256, 256])
    num_bins: int = 11
    activation: str = "relu"
    initialization: str = "default"
    head_cells: int = 64
    condition: bool = True
    flow_layers: int = 4
    flow_cells: int = 64
    max_log_scale: float = 2.0
    scale_mapping: str = "biased_softplus_1.0"
    scale_lb: float = 1e-4
    skip: bool = True


@rebuildable
def policy(settings: PolicySettings, env: EnvBase) -> Any:
    """The actor that ``settings.name`` names, on the observations and the action box of ``env``.

    Actions are ``[*B, D]``, in the units of the box. Every actor but the sampler has ``get_dist(tensordict)`` with an
    exact ``log_prob``, and every one ``stored_action_key``, the entry of a replayed transition which that ``log_prob``
    takes.

    Raises:
        ValueError: an unknown name, discrete or unbounded actions, settings that do not fit.
    """
    if settings.name not in MAKERS:
        raise ValueError(f"PolicySettings.name must be one of {', '.join(MAKERS)}, got {settings.name!r}.")
    low, high = action_bounds(env)
    return MAKERS[settings.name](settings, _observation_size(env), low, high)


def state_value_network(settings: PolicySettings, env: EnvBase) -> ValueOperator:
    """V(s): the hidden layers of ``settings``, writing ``"state_value"`` ``[*B, 1]`` from ``"observation"``.

    Values are in reward units.

    Raises:
        ValueError: widths, an activation or observations that do not fit.
    """
    return ValueOperator(
        _network(settings, _observation_size(env), 1), in_keys=["observation"], out_keys=["state_value"]
    )


def state_action_value_network(settings: PolicySettings, env: EnvBase) -> ValueOperator:
    """Q(s, a): the hidden layers of ``settings``, writing ``"state_action_value"`` ``[*B, 1]``, in reward units.

    It reads ``"observation"`` and ``"action"``, concatenated.

    Raises:
        ValueError: widths, an activation, observations or actions that do not fit.
    """
    width = _observation_size(env) + len(action_bounds(env)[0])
    return ValueOperator(
        _network(settings, width, 1), in_keys=["observation", "action"], out_keys=["state_action_value"]
    )


def bin_value_network(settings: PolicySettings, env: EnvBase) -> TensorDictModule:
    """Q(s, .): the hidden layers of ``settings``, writing ``"action_value"`` ``[*B, K]``, one per bin, in reward units.

    For actions of one dimension.

    Raises:
        ValueError: settings, observations or actions that do not fit.
    """
    dims = len(action_bounds(env)[0])
    if dims != 1:
        raise ValueError(f"A value per bin needs actions of one dimension, got {dims}.")
    net = _network(settings, _observation_size(env), settings.num_bins)
    return TensorDictModule(net, in_keys=["observation"], out_keys=["action_value"])


def action_bounds(env: EnvBase) -> tuple[Tensor, Tensor]:
    """``low, high [D]`` of the actions of ``env``, on the CPU; the actors refuse infinite ones.

    Raises:
        ValueError: actions that are not a vector of numbers.
    """
    spec = env.full_action_spec_unbatched["action"]
    if not spec.dtype.is_floating_point or not hasattr(spec.space, "low"):
        raise ValueError(f"The policy needs a bounded box of actions, got the discrete {type(spec).__name__}.")
    if spec.ndim != 1:
        raise ValueError(f"The policy needs actions that are vectors, got shape {list(spec.shape)}.")
    return spec.space.low.cpu(), spec.space.high.cpu()


def _observation_size(env: EnvBase) -> int:
    shape = env.observation_spec["observation"].shape[len(env.batch_size) :]
    if len(shape) != 1:
        raise ValueError(f"The policy needs observations that are vectors, got shape {list(shape)}.")
    return shape[0]


def _network(settings: PolicySettings, size: int, out: int | None) -> nn.Module:
    """Hidden layers, and a linear one unless ``out`` is None."""
    widths, activation = list(settings.num_cells), settings.activation
    if not widths or min(widths) < 1:
        raise ValueError(f"PolicySettings.num_cells must list widths >= 1, got {widths}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"PolicySettings.activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    net = MLP(
        in_features=size,
        out_features=widths[-1] if out is None else out,
        num_cells=widths[:-1] if out is None else widths,
        activation_class=ACTIVATIONS[activation],
        activate_last_layer=out is None,
    )
    return initialize_weights(net, settings.initialization)


def _multicategorical(settings: PolicySettings, size: int, low: Tensor, high: Tensor) -> MulticategoricalActor:
    net = _network(settings, size, len(low) * max(settings.num_bins, 1))
    return MulticategoricalActor(net, num_bins=settings.num_bins, low=low, high=high)


def _autoregressive(
    settings: PolicySettings, size: int, low: Tensor, high: Tensor
) -> AutoregressiveMulticategoricalActor:
    net, last = _network(settings, size, None), settings.num_cells[-1]
    return AutoregressiveMulticategoricalActor(
        net,
        last,
        num_bins=settings.num_bins,
        num_cells=settings.head_cells,
        condition=settings.condition,
        low=low,
        high=high,
    )


def _flow(settings: PolicySettings, size: int, low: Tensor, high: Tensor) -> FlowActor:
    net, last = _network(settings, size, None), settings.num_cells[-1]
    return FlowActor(
        net,
        last,
        max_log_scale=settings.max_log_scale,
        num_layers=settings.flow_layers,
        num_cells=settings.flow_cells,
        low=low,
        high=high,
    )


def _sampler(settings: PolicySettings, size: int, low: Tensor, high: Tensor) -> StochasticSamplerActor:
    actor = StochasticSamplerActor(
        nn.Identity(), size, num_cells=settings.num_cells, skip=settings.skip, low=low, high=high
    )
    return initialize_weights(actor, settings.initialization)


def _gaussian(settings: PolicySettings, size: int, low: Tensor, high: Tensor) -> Any:
    net = _network(settings, size, 2 * len(low))
    return gaussian_actor(net, scale_mapping=settings.scale_mapping, scale_lb=settings.scale_lb, low=low, high=high)


MAKERS: dict[str, Callable[..., Any]] = {
    "multicategorical": _multicategorical,
    "autoregressive": _autoregressive,
    "flow": _flow,
    "gaussian": _gaussian,
    "sampler": _sampler,
}
