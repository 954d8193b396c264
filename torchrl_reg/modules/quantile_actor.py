"""Q-value actor on top of an implicit quantile network."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.envs.utils import ExplorationType, exploration_type
from torchrl.modules import QValueActor

from torchrl_reg.modules.implicit_quantile import ImplicitQuantileNetwork
from torchrl_reg.regularizers.recorded import Recorded


class QuantileMean(nn.Module):
    """Mean over ``num_quantiles`` fractions: ``[*B, A]`` Q-values of a quantile network.

    Fractions are drawn uniformly; under deterministic exploration they are the midpoints ``(i + 1/2) / K``, so that an
    evaluation does not depend on a random draw.
    """

    def __init__(self, network: ImplicitQuantileNetwork, num_quantiles: int) -> None:
        super().__init__()
        self.network = network
        self.num_quantiles = num_quantiles

    def forward(self, observation: Tensor) -> Tensor:
        features = self.network.features(observation)
        count = self.num_quantiles
        if exploration_type() in (ExplorationType.RANDOM, None):
            shape = (*features.shape[:-1], count)
            fractions = torch.rand(shape, device=features.device, dtype=features.dtype)
        else:
            steps = torch.arange(count, device=features.device, dtype=features.dtype)
            fractions = (steps + 0.5) / count
        return self.network.quantiles(features, fractions).mean(-2)


class QuantileQActor(Recorded, QValueActor):
    """A QValueActor whose Q-values are means over quantile samples: greedy in ``mean_k z(s, a, sigma_k)``.

    Writes ``action_value`` ``[*B, A]``, in reward units.

    Source: Dabney et al. 2018 (IQN).

    Args:
        network: the quantile network; losses read it as ``actor.quantile_network``.
        spec: action spec (``Categorical`` or ``OneHot``), as for :class:`~torchrl.modules.QValueActor`.
        in_keys: one observation key. Default ``["observation"]``.
        num_quantiles: K, fractions averaged when acting.
        **kwargs: as for :class:`~torchrl.modules.QValueActor`.

    Raises:
        ValueError: ``num_quantiles`` < 1, or more than one in-key.

    >>> from torchrl.data import Categorical
    >>> from tensordict import TensorDict
    >>> net = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> actor = QuantileQActor(net, spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        network: ImplicitQuantileNetwork,
        *,
        spec: TensorSpec | None = None,
        in_keys: list[NestedKey] | None = None,
        num_quantiles: int = 32,
        **kwargs: Any,
    ) -> None:
        if num_quantiles < 1:
            raise ValueError(f"num_quantiles must be >= 1, got {num_quantiles}.")
        if in_keys is not None and len(in_keys) != 1:
            raise ValueError(f"in_keys must hold one observation key, got {in_keys}.")
        super().__init__(QuantileMean(network, num_quantiles), spec=spec, in_keys=in_keys, **kwargs)

    @property
    def quantile_network(self) -> ImplicitQuantileNetwork:
        """The network behind the mean."""
        return self.module[0].module.network
