"""Actors on a box: what they share, and Gaussian ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictModuleBase, dispatch
from tensordict.nn.utils import mappings
from torch import Tensor, nn
from torch.nn import functional as F
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_reg.modules.acting import State
from torchrl_reg.modules.layers import check_network

Bound = Tensor | float | Sequence[float]


@dataclass
class ActionBins:
    """Bins of a box: bin j of dimension d is ``linspace(low_d, high_d, K_d)[j]``, end-points included.

    Bins and bounds are in the units of the actions. Build it with :meth:`build`. It is no module, so that a
    distribution stays valid after a loss has swapped the parameters of its actor back.

    Args:
        num_bins: K_d per dimension.
        values: ``[D, K]`` actions, padded with ``high``.
        low, high: ``[D]`` bounds.
        bins_per_unit: ``[D]``, ``(K_d - 1) / (high_d - low_d)``.
        last: ``[D]``, ``K_d - 1``, floating point.
    """

    num_bins: tuple[int, ...]
    values: Tensor
    low: Tensor
    high: Tensor
    bins_per_unit: Tensor
    last: Tensor

    @classmethod
    def build(cls, low: Bound, high: Bound, num_bins: int | Sequence[int]) -> ActionBins:
        """Bins of the box ``[low, high]``, each a number or ``[D]``; ``num_bins`` a number or D of them.

        Raises:
            ValueError: fewer than 2 bins, an unbounded or empty box, shapes that do not fit each other.
        """
        low, high = torch.as_tensor(low), torch.as_tensor(high)
        dtype = torch.promote_types(low.dtype, high.dtype)
        dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
        counts = (num_bins,) if isinstance(num_bins, int) else tuple(int(k) for k in num_bins)
        if not counts or min(counts) < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}.")
        if low.ndim > 1 or high.ndim > 1:
            shapes = f"{list(low.shape)} and {list(high.shape)}"
            raise ValueError(f"low and high must be numbers or vectors [D], got shapes {shapes}.")
        dims = max(low.numel(), high.numel(), len(counts))
        if any(n not in (1, dims) for n in (low.numel(), high.numel(), len(counts))):
            raise ValueError(
                f"low, high and num_bins must agree on the number of action dimensions, got {low.numel()}, "
                f"{high.numel()} and {len(counts)}."
            )
        low, high = low.to(dtype).expand(dims).contiguous(), high.to(dtype).expand(dims).contiguous()
        check_box(low, high)
        counts = counts if len(counts) == dims else counts * dims
        last = torch.tensor([k - 1 for k in counts], device=low.device, dtype=low.dtype)
        step, ends = ((high - low) / last).unsqueeze(-1), last.unsqueeze(-1)
        j = torch.minimum(torch.arange(max(counts), device=low.device, dtype=low.dtype), ends)
        # From both ends, as torch.linspace does, so that the end-points are exact.
        values = torch.where(2 * j < ends, low.unsqueeze(-1) + step * j, high.unsqueeze(-1) - step * (ends - j))
        return cls(counts, values, low, high, last / (high - low), last)

    @property
    def width(self) -> int:
        """Number of logits, ``sum(num_bins)``."""
        return sum(self.num_bins)

    def split(self, logits: Tensor) -> Tensor:
        """Flat logits ``[*B, sum(num_bins)]`` as ``[*B, D, K]``, -inf where there is no bin."""
        widest = self.values.shape[-1]
        if self.width == self.values.numel():
            return logits.reshape(logits.shape[:-1] + self.values.shape)
        parts = logits.split(self.num_bins, -1)
        return torch.stack([F.pad(part, (0, widest - part.shape[-1]), value=-torch.inf) for part in parts], -2)

    def action(self, index: Tensor) -> Tensor:
        """Actions ``[*B, D]`` of the bins ``index [*B, D]``."""
        return self.values.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def index(self, action: Tensor) -> Tensor:
        """The nearest bin ``[*B, D]`` (int64) of each action; actions outside the box fall on its border."""
        return torch.minimum(((action - self.low) * self.bins_per_unit).round().clamp_min(0), self.last).long()


class BinBuffers(nn.Module):
    """:class:`ActionBins` as buffers of an actor, so that they move with it between devices; a call returns them.

    A cast to a shorter type only moves them: a loss finds the bin that was played as the one nearest to the action.

    Args:
        bins: the bins.
    """

    def __init__(self, bins: ActionBins) -> None:
        super().__init__()
        self.num_bins = bins.num_bins
        for field in fields(bins)[1:]:
            self.register_buffer(field.name, getattr(bins, field.name), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, moved in self._buffers.items():
            exact: Any = before[name]
            if torch.promote_types(moved.dtype, exact.dtype) != moved.dtype:  # type: ignore[union-attr]
                self._buffers[name] = exact.to(moved.device)  # type: ignore[union-attr]
        return self

    def forward(self) -> ActionBins:
        """The bins, on the device of the buffers."""
        return ActionBins(self.num_bins, **self._buffers)  # type: ignore[arg-type]


class BoxActor(TensorDictModuleBase):
    """Base of the actors on a box of actions: a subclass defines :meth:`outputs`.

    Args:
        torso: network of the observations, stored as the attribute ``torso_name``.
        in_keys: observation keys.
        action_key: where the action goes.
        log_prob: also write the log-probability, to the action key with ``_log_prob`` appended.

    Attributes:
        stored_action_key: what a loss reads from replay (the action).

    Raises:
        ValueError: no torso.
    """

    torso_name: ClassVar[str] = "torso"
    low: Tensor
    high: Tensor
    torso: nn.Module

    def __init__(
        self, torso: nn.Module, in_keys: Sequence[NestedKey], action_key: NestedKey, *, log_prob: bool = True
    ) -> None:
        super().__init__()
        setattr(self, self.torso_name, check_network(torso, self.torso_name))
        self.in_keys, self.out_keys = list(in_keys), [action_key]
        self.action_key = self.stored_action_key = action_key
        if log_prob:
            self.log_prob_key = suffixed(action_key, "_log_prob")
            self.out_keys.append(self.log_prob_key)
            self.dist_sample_keys, self.log_prob_keys = [action_key], [self.log_prob_key]  # where SACLoss looks

    def outputs(self, state: Any) -> dict[NestedKey, Tensor]:
        """The entries to write at ``state``, a TensorDict or a dict of tensors, which is left as it is."""
        raise NotImplementedError

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        for key, value in self.outputs(tensordict).items():
            tensordict.set(key, value)
        return tensordict

    def plain(self, state: State) -> None:
        """:meth:`forward` on a dict of tensors."""
        state.update(self.outputs(state))

    def squashed(self, u: Tensor) -> Tensor:
        """The action ``[*B, D]`` of ``u``, inside the box also where rounding would leave it."""
        return squashed(u, self.low, self.high)

    def _register_box(self, low: Tensor, high: Tensor) -> None:
        """Registers the bounds as buffers and casts them and all layers to the dtype of the torso."""
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)
        self.to(next((p.dtype for p in self.torso.parameters()), low.dtype))

    def _torso_outputs(self, state: Any) -> Tensor:
        return getattr(self, self.torso_name)(*(state[key] for key in self.in_keys))


def suffixed(key: NestedKey, suffix: str) -> NestedKey:
    """``key`` with ``suffix`` appended to its (last) name."""
    return key + suffix if isinstance(key, str) else (*key[:-1], key[-1] + suffix)


def squashed(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``low + (high - low) (1 + tanh(u)) / 2``, clamped: rounding may leave the box by one unit in the last place."""
    return (low + (high - low) * (1 + u.tanh()) / 2).clamp(low, high)


def unsquashed(action: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The ``u`` whose :func:`squashed` is ``action``, finite at the bounds."""
    return clamped_atanh((2 * action - low - high) / (high - low))


def clamped_atanh(x: Tensor) -> Tensor:
    """``atanh(x)``, clamped at ``1 - 1e-6`` (``1 - 1e-12`` in float64, in half precision the number before 1)."""
    limit = 1 - max(1e-12 if x.dtype == torch.float64 else 1e-6, torch.finfo(x.dtype).eps)
    return x.clamp(-limit, limit).atanh()


def log_sech2(u: Tensor) -> Tensor:
    """``ln(1 - tanh(u)^2)``, in the form that does not underflow."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


def check_box(low: Tensor, high: Tensor) -> None:
    """Raises ValueError unless ``low`` and ``high`` are finite and low is below high."""
    if torch.compiler.is_compiling():  # the check would read tensors on the host
        return
    if not torch.isfinite(high - low).all():
        raise ValueError(
            f"The policy needs a bounded action space (finite low and high), got low={low.tolist()} and "
            f"high={high.tolist()}."
        )
    if not (low < high).all():
        raise ValueError(f"low must be below high, got low={low.tolist()} and high={high.tolist()}.")


def box_bounds(low: Bound, high: Bound) -> tuple[Tensor, Tensor]:
    """Bounds ``[D]`` of a box of actions, from numbers or vectors.

    Raises:
        ValueError: bounds of more dimensions or of two lengths, or no box.
    """
    bottom, top = (torch.atleast_1d(torch.as_tensor(bound)).float() for bound in (low, high))
    if bottom.ndim > 1 or top.ndim > 1 or (len(bottom) != len(top) and 1 not in (len(bottom), len(top))):
        shapes = f"{list(bottom.shape)} and {list(top.shape)}"
        raise ValueError(f"low and high must be numbers or vectors [D], got shapes {shapes}.")
    bottom, top = (bound.clone() for bound in torch.broadcast_tensors(bottom, top))
    check_box(bottom, top)
    return bottom, top


class BoxedTanhNormal(TanhNormal):
    """A :class:`~torchrl.modules.TanhNormal` whose bounds are moved and compared once for each device and dtype.

    TorchRL does both in every constructor, and the host waits for the GPU each time. Actions have the dtype of ``loc``.

    Args:
        loc, scale: of the normal, ``[*B, D]``.
        low, high: the bounds, exact in float64.
        cache: attributes by device and dtype; one dict for all distributions of a box.
        box: further arguments of TorchRL's.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, *, low: Tensor, high: Tensor, cache: dict[Any, dict[str, Any]], **box: Any
    ) -> None:
        key = loc.device, loc.dtype
        if not torch.compiler.is_compiling() and key in cache:
            self.__dict__.update(cache[key])
            self.update(loc, scale)
            return
        super().__init__(loc, scale, low=low.to(loc), high=high.to(loc), **box)
        # Inference tensors could not be differentiated through.
        if not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
            cache[key] = self._box_attributes

    def update(self, loc: Tensor, scale: Tensor) -> None:
        # Called at the end of TorchRL's constructor, when all attributes so far depend on the box alone.
        if not torch.compiler.is_compiling() and not hasattr(self, "base_dist"):
            self._box_attributes = dict(vars(self))
        super().update(loc, scale)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        # The same numbers as TorchRL's, whose torch.normal makes the host wait for a GPU before PyTorch 2.14.
        with torch.no_grad():
            return self.rsample(sample_shape)


def gaussian_actor(
    network: nn.Module,
    *,
    low: Bound,
    high: Bound,
    in_keys: Sequence[NestedKey] = ("observation",),
    action_key: NestedKey = "action",
    scale_mapping: str = "biased_softplus_1.0",
    scale_lb: float = 1e-4,
    spec: TensorSpec | None = None,
) -> ProbabilisticActor:
    """A :class:`~torchrl.modules.ProbabilisticActor` with ``a = tanh(N(loc, scale))``, scaled to ``[low, high]``.

    It writes the action ``[*B, D]``, ``action_log_prob [*B]`` (a log-density, nats), ``loc`` and ``scale``. Its
    ``stored_action_key`` is the action key: what a loss reads from replay.

    Source: Haarnoja et al. 2018 (SAC), appendix C.

    Args:
        network: from the in-keys to ``[*B, 2 D]``: ``loc``, then the scale before ``scale_mapping``.
        low, high: bounds of the actions, numbers or ``[D]``.
        in_keys, action_key: observation keys, and where the action goes.
        scale_mapping, scale_lb: as for :class:`~tensordict.nn.NormalParamExtractor`: map to positive scales, lower
            bound.
        spec: action spec, optional.

    Raises:
        ValueError: no network, an unbounded or empty box, ``scale_lb`` not > 0.

    >>> from tensordict import TensorDict
    >>> actor = gaussian_actor(nn.Linear(4, 2 * 3), low=[-1.0] * 3, high=[1.0] * 3)
    >>> td = actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))
    >>> td["action"].shape, td["action_log_prob"].shape
    (torch.Size([8, 3]), torch.Size([8]))
    """
    check_network(network, "network")
    if not scale_lb > 0:
        raise ValueError(f"scale_lb must be > 0, got {scale_lb}.")
    try:
        mappings(scale_mapping)
    except NotImplementedError:
        raise ValueError(
            f"scale_mapping must be one of tensordict's mappings, such as 'biased_softplus_1.0' or 'exp', got "
            f"{scale_mapping!r}."
        ) from None
    low, high = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    check_box(low.float(), high.float())  # float32's largest numbers are no bounds
    params = TensorDictModule(
        nn.Sequential(network, NormalParamExtractor(scale_mapping=scale_mapping, scale_lb=scale_lb)),
        in_keys=list(in_keys),
        out_keys=["loc", "scale"],
    )
    actor = ProbabilisticActor(
        params,
        in_keys=["loc", "scale"],
        out_keys=[action_key],
        spec=spec,
        distribution_class=BoxedTanhNormal,
        # safe_tanh clamps the inverse at 1 - eps: without it an action on a bound has log-density nan.
        distribution_kwargs={"low": low, "high": high, "event_dims": 1, "safe_tanh": True, "cache": {}},
        return_log_prob=True,
        log_prob_key=suffixed(action_key, "_log_prob"),
        default_interaction_type=ExplorationType.RANDOM,
    )
    actor.stored_action_key = actor.action_key = action_key
    return actor
