"""Networks built from settings: torsos for vectors and images, and their heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal, TypeVar, get_args

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.envs import EnvBase

from torchrl_reg.modules.ensembles import OutputLinear
from torchrl_reg.modules.layers import Dueling, NoisyLinear, NoisyOutputLinear
from torchrl_reg.modules.q_actors import ImplicitQuantileNetwork
from torchrl_reg.modules.rebuilding import rebuildable

Initialization = Literal["default", "glorot_uniform", "variance_scaling", "orthogonal", "lecun_normal", "he_normal"]
Padding = Literal["valid", "same"]


#: Standard deviation of a standard normal variable cut off at -2 and 2.
_CUT_DEVIATION = 0.87962566103423978


Network = TypeVar("Network", bound=nn.Module)


def initialize_weights(module: Network, initialization: Initialization | str) -> Network:
    r"""Initializes the weights of every Conv2d and Linear in ``module``, in order, with zero biases, and returns it.

    Uniform on ``[-b, b]``: ``"glorot_uniform"``: :math:`b = \sqrt{6 / (fan_{in} + fan_{out})}` (TensorFlow's default,
    hence Dopamine's DQN and M-DQN); ``"variance_scaling"``: :math:`b = \sqrt{3 s / fan_{in}}` with
    :math:`s = 1/\sqrt 3` (Dopamine's C51, Rainbow and IQN).
    ``"orthogonal"``: of gain :math:`\sqrt 2` in all layers, the last included (CleanRL's PQN). Normal, cut off at two
    standard deviations and rescaled: ``"lecun_normal"`` of variance :math:`1 / fan_{in}` (flax's default),
    ``"he_normal"`` of :math:`2 / fan_{in}`, but for the last linear layer, which is ``lecun_normal`` (Gallici et al.
    2024 on images). ``"default"`` leaves PyTorch's.

    Raises:
        ValueError: another name.
    """
    _check_initialization("initialization", initialization)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers if initialization != "default" else ():
        own = dict(layer.named_parameters())  # under a spectral norm `layer.weight` is a copy
        weight = own["weight"] if "weight" in own else own["parametrizations.weight.original"]
        _draw(weight, initialization, layer is layers[-1])
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return module


def _check_initialization(argument: str, got: str) -> None:
    if got not in get_args(Initialization):
        *others, last = map(repr, get_args(Initialization))
        raise ValueError(f"{argument} must be {', '.join(others)} or {last}, got {got!r}.")


def _draw(weight: Tensor, initialization: str, last: bool) -> None:
    fan_in = weight[0].numel()
    if initialization == "glorot_uniform":
        nn.init.xavier_uniform_(weight)
    elif initialization == "variance_scaling":
        bound = math.sqrt(3 / math.sqrt(3) / fan_in)
        nn.init.uniform_(weight, -bound, bound)
    elif initialization == "orthogonal":
        nn.init.orthogonal_(weight, math.sqrt(2))
    else:
        scale = 2 if initialization == "he_normal" and not last else 1
        deviation = math.sqrt(scale / fan_in) / _CUT_DEVIATION
        nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


#: Builds the normalization of features of a shape, ``[F]`` or ``[C, H, W]``; an empty list for none.
Normalization = Callable[[Sequence[int]], list[nn.Module]]


class ChannelNorm(nn.LayerNorm):
    """Normalizes the channels at each place of an image, ``[*B, C, H, W]``, with a scale and a shift per channel.

    Equals flax's layer norm, which normalizes the last axis of channels-last images, and differs from torch's
    ``LayerNorm([C, H, W])`` over the whole image.
    """

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.movedim(-3, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.movedim(-1, -3)


def normalization(kind: str, eps: float) -> Normalization:
    """``"none"``, ``"channels"`` (per place of an image) or ``"image"`` (over all of it); equal for vectors.

    Raises:
        ValueError: another kind.
    """
    if kind not in ("none", "channels", "image"):
        raise ValueError(f"layer_norm must be 'none', 'channels' or 'image', got {kind!r}.")

    def make(shape: Sequence[int]) -> list[nn.Module]:
        if kind == "none":
            return []
        if kind == "channels" and len(shape) == 3:
            return [ChannelNorm(shape[0], eps=eps)]
        return [nn.LayerNorm(list(shape), eps=eps)]

    return make


def no_normalization(shape: Sequence[int]) -> list[nn.Module]:
    """No layers."""
    return []


def _check_padding(padding: str) -> None:
    if padding not in ("valid", "same"):
        raise ValueError(f"padding must be 'valid' or 'same', got {padding!r}.")


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. (2015): 32@8x8/4, 64@4x4/2, 64@3x3/1, ReLU, flattened.

    uint8 images are divided by 255; floating-point images are not.

    Source: Mnih et al. 2015 (DQN).

    Args:
        in_channels: stacked frames C.
        padding: ``"valid"`` gives 3136 features; ``"same"`` pads as TensorFlow does and gives 7744
            (Dopamine's TensorFlow agents, the published M-DQN and M-IQN included).
        initialization: see :func:`initialize_weights`.
        normalization: after each convolution, see :func:`~torchrl_reg.modules.networks.normalization`.

    Shape: ``[*B, C, 84, 84]`` -> ``[*B, out_features]``.

    Raises:
        ValueError: an unknown ``padding`` or ``initialization``, or images of another shape.

    >>> torso = NatureCNN(padding="same")
    >>> torso(torch.zeros(2, 5, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2, 5, 7744])
    """

    def __init__(
        self,
        in_channels: int = 4,
        *,
        padding: Padding = "valid",
        initialization: Initialization = "default",
        normalization: Normalization = no_normalization,
    ) -> None:
        super().__init__()
        _check_padding(padding)
        self._image_shape = (in_channels, 84, 84)
        layers: list[nn.Module] = []
        size = 84
        for channels_in, channels, kernel, stride in ((in_channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
            if padding == "same":
                # ceil(size / stride) outputs; TensorFlow puts the odd zero below and right.
                total = (math.ceil(size / stride) - 1) * stride + kernel - size
                before, after = total // 2, total - total // 2
                layers.append(nn.ZeroPad2d((before, after, before, after)))
                size += total
            size = (size - kernel) // stride + 1
            convolution = nn.Conv2d(channels_in, channels, kernel, stride)
            layers += [convolution, *normalization([channels, size, size]), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.out_features = 64 * size * size
        initialize_weights(self, initialization)

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 84, 84]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        if observation.dtype == torch.uint8:
            images = images.div_(255)  # a copy of the observation since _images
        if torch.is_grad_enabled() and images.device.type == "cpu":
            # Channels last halves the time of the first layer's gradient; vmap does not support memory_format.
            images = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


class MinAtarCNN(nn.Module):
    """The convolution of Young and Tian (2019): 16@3x3/1, ReLU, flattened.

    Images are zeros and ones of any type and are not scaled, except by a ``divisor``.

    Source: Young and Tian 2019 (MinAtar).

    Args:
        in_channels: channels C of the game.
        padding: ``"valid"`` gives 1024 features, ``"same"`` (Obando-Ceron and Castro 2021) 1600.
        initialization: see :func:`initialize_weights`.
        normalization: after the convolution, see :func:`~torchrl_reg.modules.networks.normalization`.
        divisor: of the images (Gallici et al. 2024 divide by 255).

    Shape: ``[*B, C, 10, 10]`` -> ``[*B, out_features]``.

    Raises:
        ValueError: an unknown ``padding`` or ``initialization``, or images of another shape.

    >>> MinAtarCNN(in_channels=7)(torch.ones(3, 7, 10, 10, dtype=torch.bool)).shape
    torch.Size([3, 1024])
    """

    def __init__(
        self,
        in_channels: int,
        *,
        padding: Padding = "valid",
        initialization: Initialization = "default",
        normalization: Normalization = no_normalization,
        divisor: float = 1.0,
    ) -> None:
        super().__init__()
        _check_padding(padding)
        self._image_shape, self._divisor = (in_channels, 10, 10), divisor
        around = 1 if padding == "same" else 0
        side, convolution = 8 + 2 * around, nn.Conv2d(in_channels, 16, 3, padding=around)
        self.convolutions = nn.Sequential(convolution, *normalization([16, side, side]), nn.ReLU())
        self.out_features = 16 * side * side
        initialize_weights(self, initialization)

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 10, 10]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        if self._divisor != 1:
            images = images / self._divisor
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


class ImpalaCNN(nn.Module):
    """The residual convolutions of Espeholt et al. (2018), wider, spectrally normalized, and pooled to 6x6.

    Three stages of channels ``16, 32, 32`` times ``width``: a 3x3 convolution, max pooling 3/2, then two residual units
    ``x + conv(relu(conv(relu(x))))``; ReLU, adaptive max pooling, flattened. uint8 images are divided by 255.

    Args:
        in_channels: stacked frames C.
        width: factor of the channels, 2 in Beyond The Rainbow, 1 in IMPALA.
        spectral_norm: divide the weights of the residual convolutions by their largest singular value, by one step of
            power iteration in each pass in train mode; other weights are not normalized.
        pooled: side of the pooled image; None for no pooling (11x11 remain).

    Shape: ``[*B, C, 84, 84]`` -> ``[*B, out_features]``, 2304 by default.

    Raises:
        ValueError: images of another shape.

    Source: Espeholt et al., "IMPALA", ICML 2018; Clark et al., "Beyond The Rainbow", ICML 2025.

    >>> ImpalaCNN()(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape
    torch.Size([2, 2304])
    """

    def __init__(
        self, in_channels: int = 4, *, width: int = 2, spectral_norm: bool = True, pooled: int | None = 6
    ) -> None:
        super().__init__()
        self._image_shape = (in_channels, 84, 84)
        layers: list[nn.Module] = []
        channels_in = in_channels
        for channels in (16 * width, 32 * width, 32 * width):
            layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [ResidualUnit(channels, spectral_norm=spectral_norm) for _ in range(2)]
            channels_in = channels
        pooling = [] if pooled is None else [nn.AdaptiveMaxPool2d(pooled)]
        self.convolutions = nn.Sequential(*layers, nn.ReLU(), *pooling)
        self.out_features = channels_in * (11 if pooled is None else pooled) ** 2

    def forward(self, observation: Tensor) -> Tensor:
        """Features ``[*B, out_features]`` of images ``[*B, C, 84, 84]``."""
        images = _images(observation, self._image_shape, self.convolutions)
        if observation.dtype == torch.uint8:
            images = images.div_(255)  # a copy of the observation since _images
        return self.convolutions(images).reshape(*observation.shape[:-3], self.out_features)


class ResidualUnit(nn.Module):
    """``x + conv(relu(conv(relu(x))))`` with 3x3 convolutions of images ``[B, channels, H, W]``."""

    def __init__(self, channels: int, *, spectral_norm: bool) -> None:
        super().__init__()
        normalized = nn.utils.parametrizations.spectral_norm if spectral_norm else lambda layer: layer
        first, second = (normalized(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))
        self.residual = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x)


def _images(observation: Tensor, shape: tuple[int, int, int], convolutions: nn.Sequential) -> Tensor:
    """The images as one batch ``[prod(B), C, H, W]``, integers in the type of the weights."""
    if observation.shape[-3:] != shape:
        raise ValueError(
            f"observation must be images of shape [*B, {', '.join(map(str, shape))}], got {list(observation.shape)}."
        )
    if not observation.is_floating_point():
        # Not parameters(), which is empty when a TorchRL loss has swapped in target parameters as plain tensors.
        weight = next(layer.weight for layer in convolutions if isinstance(layer, nn.Conv2d))
        observation = observation.to(weight.dtype)
    return observation.reshape(-1, *shape)


#: Dimensions of an observation, by name of the torso.
_DIMS = {"mlp": 1, "minatar": 3, "nature": 3, "impala": 3}
#: Height and width of the images, by name of the torso.
_SIDES = {"minatar": 10, "nature": 84, "impala": 84}
_MIN = {"num_cosines": 1, "num_quantiles": 1, "num_target_quantiles": 1, "num_policy_quantiles": 1}
_MIN |= {"num_atoms": 2, "impala_width": 1}


@dataclass
class NetSettings:
    """A torso and its fully connected layers.

    Args:
        name: ``"mlp"`` (vectors), ``"minatar"`` (one 3x3 convolution), ``"nature"`` or ``"impala"`` (84x84 images).
        num_cells: widths of the fully connected hidden layers, ReLU between them; empty for none.
        padding: of the Nature convolutions, ``"valid"`` or ``"same"`` (TensorFlow's, 7744 features), and of MinAtar's.
        layer_norm: ``"none"``; before each ReLU ``"channels"`` (at each place of an image) or ``"image"`` (over all of
            it), equal for vectors. Not for quantile networks.
        layer_norm_eps: added to the variance there.
        image_divisor: of ``"minatar"`` images.
        initialization: ``"default"`` (PyTorch's), ``"glorot_uniform"``, ``"variance_scaling"``, ``"orthogonal"``,
            ``"lecun_normal"`` or ``"he_normal"``, see :func:`~torchrl_reg.modules.networks.initialize_weights`.
        quantile_initialization: of quantile networks; empty: ``initialization``.
        noise_sigma: sigma_0 of noisy fully connected layers, 0 for none; the fraction embedding has none.
        dueling: ``"none"``, or the baseline of :class:`~torchrl_reg.modules.Dueling`, ``"mean"`` or ``"max"``.
        dueling_shares_hidden: hidden layers before both streams instead of one stack in each.
        spectral_norm: of the residual convolutions of ``"impala"``.
        impala_width: factor of its channels, 16, 32 and 32.
        num_cosines: size of the fraction embedding of quantile networks.
        first_cosine: first multiple of the fraction there, 0 or 1.
        num_quantiles: N of quantile networks: fractions of the prediction.
        num_target_quantiles: M of quantile networks: fractions of the target.
        num_policy_quantiles: K of quantile networks: fractions behind the policy, also when acting.
        num_atoms, value_min, value_max: grid of categorical networks; returns outside it are clipped to its ends.
        input_low, input_high: rescale a vector observation from this box to [-1, 1]; empty for none.
    """

    is_rebuildable: ClassVar[bool] = True

    name: str = "mlp"
    num_cells: list[int] = field(default_factory=lambda: [256, 256])
    padding: str = "valid"
    layer_norm: str = "none"
    layer_norm_eps: float = 1e-5
    image_divisor: float = 1.0
    initialization: str = "default"
    quantile_initialization: str = ""
    noise_sigma: float = 0.0
    dueling: str = "none"
    dueling_shares_hidden: bool = False
    spectral_norm: bool = True
    impala_width: int = 2
    num_cosines: int = 64
    first_cosine: int = 1
    num_quantiles: int = 64
    num_target_quantiles: int = 64
    num_policy_quantiles: int = 32
    num_atoms: int = 51
    value_min: float = -10.0
    value_max: float = 10.0
    input_low: list[float] = field(default_factory=list)
    input_high: list[float] = field(default_factory=list)

    def validate(self) -> None:
        """Checks names and sizes, also those that the chosen network does not use.

        Raises:
            ValueError: an unknown name, or a size that is too small.
        """
        if self.name not in _DIMS:
            raise ValueError(f"NetSettings.name must be one of {', '.join(_DIMS)}, got {self.name!r}.")
        _check_initialization("NetSettings.initialization", self.initialization)
        if self.quantile_initialization:
            _check_initialization("NetSettings.quantile_initialization", self.quantile_initialization)
        if min(self.num_cells, default=1) < 1:
            raise ValueError(f"NetSettings.num_cells must list widths >= 1, got {list(self.num_cells)}.")
        if self.layer_norm_eps <= 0 or self.image_divisor <= 0:
            got = f"{self.layer_norm_eps} and {self.image_divisor}"
            raise ValueError(f"NetSettings.layer_norm_eps and image_divisor must be > 0, got {got}.")
        if self.noise_sigma < 0 or self.first_cosine not in (0, 1):
            got = f"{self.noise_sigma} and {self.first_cosine}"
            raise ValueError(f"NetSettings.noise_sigma must be >= 0 and first_cosine 0 or 1, got {got}.")
        if self.dueling not in ("none", "mean", "max"):
            raise ValueError(f"NetSettings.dueling must be 'none', 'mean' or 'max', got {self.dueling!r}.")
        for name, low in _MIN.items():
            if getattr(self, name) < low:
                raise ValueError(f"NetSettings.{name} must be >= {low}, got {getattr(self, name)}.")


class Rescale(nn.Module):
    """Affine map of the box ``[low, high]`` to ``[-1, 1]``, per component."""

    center: Tensor
    half_width: Tensor
    row_by_row = True

    def __init__(self, low: list[float], high: list[float]) -> None:
        super().__init__()
        bottom, top = torch.tensor(low), torch.tensor(high)
        self.register_buffer("center", (bottom + top) / 2, persistent=False)
        self.register_buffer("half_width", (top - bottom) / 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.half_width


@rebuildable
def q_network(settings: NetSettings, env: EnvBase, values_per_action: int = 1) -> nn.Module:
    """A network from one observation to ``[*B, A]`` Q-values, or to ``[*B, values_per_action * A]`` atoms or quantiles.

    Q-values and quantiles are in reward units, atoms are logits.

    Raises:
        ValueError: settings that do not fit each other or the observations.
    """
    shape = _shape(env, "observation")
    return _action_network(settings, env, shape, rescaled=True, values_per_action=values_per_action)


@rebuildable
def prior_network(settings: NetSettings, env: EnvBase, keys: Sequence[str]) -> TensorDictModule:
    """A state-dependent action prior: observations ``keys`` to ``"log_prior"`` ``[*B, A]`` (nats), uniform at first.

    Raises:
        ValueError: an observation that ``env`` does not have, or several that are not all vectors.
    """
    spec = env.observation_spec
    # Neither counters nor the return so far are observations.
    names = list(spec.keys())
    known = [k for k in names if spec[k].dtype.is_floating_point and k != "episode_reward"]
    unknown = [key for key in keys if key not in known]
    if unknown or not keys:
        raise ValueError(f"The prior's keys must be among {', '.join(known)}, got {list(keys)}.")
    shapes = [_shape(env, key) for key in keys]
    shape = shapes[0] if len(keys) == 1 else torch.Size([sum(shape.numel() for shape in shapes)])
    if len(keys) > 1 and any(len(s) != 1 for s in shapes):
        raise ValueError(f"Several observations of a prior must all be vectors, got {[list(s) for s in shapes]}.")
    network = _action_network(settings, env, shape, rescaled=list(keys) == ["observation"])
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return TensorDictModule(Joined(network), in_keys=list(keys), out_keys=["log_prior"])


class Joined(nn.Module):
    """A network of the concatenation of its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1))


@rebuildable
def quantile_network(settings: NetSettings, env: EnvBase) -> ImplicitQuantileNetwork:
    """An implicit quantile network: all but the last hidden layer before the fraction embedding, the last after it.

    From one observation and fractions ``[*B, N]`` to quantile values ``[*B, N, A]``, in reward units.

    Raises:
        ValueError: settings that do not fit each other or the observations.
    """
    if settings.layer_norm != "none":
        raise ValueError(f"NetSettings.layer_norm must be 'none' for a quantile network, got {settings.layer_norm!r}.")
    torso, width = _torso(settings, _shape(env, "observation"), rescaled=True)
    for cells in settings.num_cells[:-1]:
        torso += [nn.Linear(width, cells), nn.ReLU()]
        width = cells
    network = ImplicitQuantileNetwork(
        nn.Sequential(*torso),
        num_features=width,
        num_actions=num_actions(env),
        num_cosines=settings.num_cosines,
        first_cosine=settings.first_cosine,
        head=_head(settings, width, settings.num_cells[-1:], num_actions(env)),
    )
    return initialize_weights(network, settings.quantile_initialization or settings.initialization)


def num_actions(env: EnvBase) -> int:
    """Number of discrete actions of ``env``.

    Raises:
        ValueError: the actions of ``env`` are continuous.
    """
    spec = env.full_action_spec_unbatched["action"]
    if not hasattr(spec.space, "n"):
        raise ValueError(
            f"env must have discrete actions (a categorical spec), got continuous ones of shape {tuple(spec.shape)}."
        )
    return int(spec.space.n)


def _shape(env: EnvBase, key: str) -> torch.Size:
    """Shape of one observation, without the environments' dimensions."""
    return env.observation_spec[key].shape[len(env.batch_size) :]


def _action_network(
    settings: NetSettings, env: EnvBase, shape: torch.Size, *, rescaled: bool, values_per_action: int = 1
) -> nn.Module:
    """``values_per_action`` numbers per action from one input of that shape."""
    torso, width = _torso(settings, shape, rescaled=rescaled)
    head = _head(settings, width, settings.num_cells, num_actions(env), values_per_action)
    return initialize_weights(nn.Sequential(*torso, *head), settings.initialization)


def _head(
    settings: NetSettings, width: int, hidden: Sequence[int], actions: int, values_per_action: int = 1
) -> nn.Sequential:
    """Fully connected layers from features to ``values_per_action`` numbers for each action, noisy or not."""
    normalized = normalization(settings.layer_norm, settings.layer_norm_eps)

    sigma = settings.noise_sigma

    def linear(inputs: int, outputs: int) -> nn.Linear:
        return NoisyLinear(inputs, outputs, sigma=sigma) if sigma else nn.Linear(inputs, outputs)

    def values(inputs: int, count: int) -> nn.Linear:
        return NoisyOutputLinear(inputs, count, sigma=sigma) if sigma else OutputLinear(inputs, count)

    def layers(widths: Sequence[int]) -> list[nn.Module]:
        pairs = pairwise([width, *widths])
        return [layer for one, next_ in pairs for layer in (linear(one, next_), *normalized([next_]), nn.ReLU())]

    last = hidden[-1] if hidden else width
    if settings.dueling == "none":
        return nn.Sequential(*layers(hidden), values(last, values_per_action * actions))
    own = [] if settings.dueling_shares_hidden else hidden
    value = nn.Sequential(*layers(own), values(last, values_per_action))
    advantage = nn.Sequential(*layers(own), values(last, values_per_action * actions))
    shared = nn.Sequential(*layers(hidden)) if settings.dueling_shares_hidden else None
    dueling = Dueling(value, advantage, num_actions=actions, shared=shared, baseline=settings.dueling)
    return nn.Sequential(dueling)


def _torso(settings: NetSettings, shape: torch.Size, *, rescaled: bool) -> tuple[list[nn.Module], int]:
    """Layers from the observation to a vector, and its width."""
    settings.validate()
    sides = [_SIDES[settings.name]] * 2 if settings.name in _SIDES else []
    if len(shape) != _DIMS[settings.name] or list(shape[1:]) != sides:
        fitting = " or ".join(f"net={name}" for name, side in _SIDES.items() if tuple(shape[1:]) == (side, side))
        images = fitting or "images must be 10x10 (net=minatar) or 84x84 (net=nature, net=impala)"
        hint = f": {images}." if len(shape) > 1 else "."
        raise ValueError(f"NetSettings.name must fit observations of shape {tuple(shape)}, got {settings.name!r}{hint}")
    normalized = normalization(settings.layer_norm, settings.layer_norm_eps)
    if settings.name == "mlp":
        return _rescaling(settings, shape[0]) if rescaled else [], shape[0]
    if settings.name == "minatar":
        torso: nn.Module = MinAtarCNN(
            shape[0],
            padding=settings.padding,  # type: ignore[arg-type]
            normalization=normalized,
            divisor=settings.image_divisor,
        )
    elif settings.name == "impala":
        torso = ImpalaCNN(shape[0], width=settings.impala_width, spectral_norm=settings.spectral_norm)
    else:
        torso = NatureCNN(shape[0], padding=settings.padding, normalization=normalized)  # type: ignore[arg-type]
    return [torso], torso.out_features  # type: ignore[return-value]


def _rescaling(settings: NetSettings, width: int) -> list[nn.Module]:
    low, high = list(settings.input_low), list(settings.input_high)
    if not low and not high:
        return []
    if not len(low) == len(high) == width or not torch.all(torch.tensor(low) < torch.tensor(high)):
        raise ValueError(
            f"NetSettings.input_low and input_high must list {width} numbers each, low below high, got {low}, {high}."
        )
    return [Rescale(low, high)]
