"""The tanh-normal actor, made of TorchRL's own parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey
from tensordict.nn import NormalParamExtractor, TensorDictModule
from tensordict.nn.utils import mappings
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType
from torchrl.modules import ProbabilisticActor, TanhNormal

from torchrl_reg.modules.box_actor import Bound, check_box, suffixed
from torchrl_reg.modules.layers import check_network


class BoxedTanhNormal(TanhNormal):
    """A :class:`~torchrl.modules.TanhNormal` whose bounds are moved and compared once for each device and dtype.

    TorchRL's does both whenever one is made, and the host waits for a GPU each time. Actions have the dtype of ``loc``.

    Args:
        loc, scale: of the normal, ``[*B, D]``.
        low, high: the bounds, exact in float64.
        held: what is kept for each device and dtype; one dict for all distributions of a box.
        box: further arguments of TorchRL's.
    """

    def __init__(
        self, loc: Tensor, scale: Tensor, *, low: Tensor, high: Tensor, held: dict[Any, dict[str, Any]], **box: Any
    ) -> None:
        key = loc.device, loc.dtype
        if not torch.compiler.is_compiling() and key in held:
            self.__dict__.update(held[key])
            self.update(loc, scale)
            return
        super().__init__(loc, scale, low=low.to(loc), high=high.to(loc), **box)
        # Inference tensors could not be differentiated through.
        if not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
            held[key] = self._of_the_box

    def update(self, loc: Tensor, scale: Tensor) -> None:
        # Called at the end of TorchRL's constructor, when all there is comes from the box.
        if not torch.compiler.is_compiling() and not hasattr(self, "base_dist"):
            self._of_the_box = dict(vars(self))
        super().update(loc, scale)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        # The same numbers as TorchRL's, whose torch.normal has the host read the scale, on a GPU until PyTorch 2.14.
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
        distribution_kwargs={"low": low, "high": high, "event_dims": 1, "safe_tanh": True, "held": {}},
        return_log_prob=True,
        log_prob_key=suffixed(action_key, "_log_prob"),
        default_interaction_type=ExplorationType.RANDOM,
    )
    actor.stored_action_key = actor.action_key = action_key
    return actor
