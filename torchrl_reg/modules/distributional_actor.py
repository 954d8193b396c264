"""Q-value actors on a distribution of returns: atoms on a fixed grid, or quantiles at fixed or drawn fractions.

Shapes: ``*B`` batch, ``N`` atoms or quantiles, ``A`` actions.
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import QValueActor

from torchrl_reg.modules.boltzmann import explores
from torchrl_reg.modules.implicit_quantile import ImplicitQuantileNetwork
from torchrl_reg.modules.layers import check_network
from torchrl_reg.regularizers.checks import ExactBuffers, check_integer, exact_where_possible
from torchrl_reg.regularizers.recorded import Recorded


class QuantileAverage(ExactBuffers):
    """A network of ``N * A`` quantiles, read as ``[*B, N, A]``; its own output is their mean ``[*B, A]``."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = check_network(network, "network"), size

    def outputs(self, *inputs: Tensor) -> Tensor:
        """``[*B, N, A]``."""
        flat = self.network(*inputs)
        if flat.shape[-1] % self.size:
            raise ValueError(
                f"The network must have a multiple of {self.size} outputs (that many for each action), got "
                f"{flat.shape[-1]}."
            )
        return flat.unflatten(-1, (self.size, -1))

    def mean(self, outputs: Tensor) -> Tensor:
        """Means ``[*B, A]`` of ``outputs [*B, N, A]``."""
        return outputs.mean(-2)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.mean(self.outputs(*inputs))


class AtomMean(QuantileAverage):
    """Means ``[*B, A]`` of categorical distributions whose logits a network gives."""

    support: Tensor
    exact_buffers = ("support",)

    def __init__(self, network: nn.Module, support: Tensor) -> None:
        super().__init__(network, len(support))
        self.register_buffer("support", support)

    def mean(self, outputs: Tensor) -> Tensor:
        """``sum_i softmax(outputs)_i z_i [*B, A]`` of logits ``outputs [*B, N, A]``."""
        return (outputs.softmax(-2) * self.support.to(outputs.dtype).unsqueeze(-1)).sum(-2)


class DistributionalActor(Recorded, QValueActor):
    """Base of the two actors: gives access to the module behind the Q-values."""

    @property
    def distribution(self) -> Any:
        """The module that gives ``outputs(observation) [*B, N, A]`` and their ``mean``."""
        return self.module[0].module


class CategoricalQActor(DistributionalActor):
    """A QValueActor whose Q-values are means of categorical distributions: greedy in ``sum_i z_i p_i(s, a)`` (C51).

    Args:
        network: maps the observation to ``[*B, num_atoms * A]`` logits, the atoms of all actions together by atom.
        num_atoms: N >= 2. value_min, value_max: ends of the grid, in units of return; returns beyond them are clipped.
        spec, in_keys, **kwargs: as for :class:`~torchrl.modules.QValueActor`.

    TorchRL's :class:`~torchrl.modules.DistributionalQValueActor` writes log-probabilities where every other actor
    writes Q-values; this one writes Q-values, so that exploration modules and Boltzmann policies take it as it is.

    Raises:
        ValueError: no network, fewer than two atoms, or ``value_min >= value_max``.

    Source: Bellemare, Dabney, Munos, "A Distributional Perspective on Reinforcement Learning", ICML 2017.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> actor = CategoricalQActor(nn.Linear(4, 51 * 3), num_atoms=51, value_min=-10, value_max=10, spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        num_atoms: int = 51,
        value_min: float = -10.0,
        value_max: float = 10.0,
        spec: TensorSpec | None = None,
        **kwargs: Any,
    ) -> None:
        check_integer(num_atoms, "num_atoms", 2)
        if not -float("inf") < value_min < value_max < float("inf"):
            raise ValueError(f"value_min must be below value_max, both finite, got {value_min!r} and {value_max!r}.")
        device = next((p.device for p in check_network(network, "network").parameters()), None)
        # In float64, so that a loss in double precision has the exact grid.
        support = torch.linspace(value_min, value_max, num_atoms, dtype=torch.float64)
        super().__init__(AtomMean(network, exact_where_possible(lambda x: x.to(device))(support)), spec=spec, **kwargs)


class FixedQuantileQActor(DistributionalActor):
    """A QValueActor whose Q-values are means of quantiles at the fractions ``(i + 1/2) / N`` (QR-DQN).

    Args:
        network: maps the observation to ``[*B, num_quantiles * A]`` quantiles, by quantile, in reward units.
        num_quantiles: N >= 1.
        spec, in_keys, **kwargs: as for :class:`~torchrl.modules.QValueActor`.

    Raises:
        ValueError: no network, or ``num_quantiles`` < 1.

    Source: Dabney et al., "Distributional Reinforcement Learning with Quantile Regression", AAAI 2018.

    >>> from tensordict import TensorDict
    >>> from torchrl.data import Categorical
    >>> actor = FixedQuantileQActor(nn.Linear(4, 20 * 3), num_quantiles=20, spec=Categorical(3))
    >>> actor(TensorDict({"observation": torch.randn(8, 4)}, [8]))["action_value"].shape
    torch.Size([8, 3])
    """

    def __init__(
        self, network: nn.Module, *, num_quantiles: int = 200, spec: TensorSpec | None = None, **kwargs: Any
    ) -> None:
        check_integer(num_quantiles, "num_quantiles", 1)
        super().__init__(QuantileAverage(network, num_quantiles), spec=spec, **kwargs)


class QuantileMean(nn.Module):
    """Mean over ``num_quantiles`` fractions: ``[*B, A]`` Q-values of a quantile network.

    Fractions are drawn uniformly; under deterministic exploration they are the midpoints ``(i + 1/2) / K``, so that an
    evaluation does not depend on a random draw.
    """

    def __init__(self, network: ImplicitQuantileNetwork, num_quantiles: int) -> None:
        super().__init__()
        self.network, self.num_quantiles = network, num_quantiles

    def forward(self, observation: Tensor) -> Tensor:
        features = self.network.features(observation)
        count = self.num_quantiles
        if explores():
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
        ValueError: no quantile network, ``num_quantiles`` < 1, or more than one in-key.

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
        if not hasattr(network, "quantiles"):
            raise ValueError(f"network must be an ImplicitQuantileNetwork, got {network!r}.")
        if in_keys is not None and len(in_keys) != 1:
            raise ValueError(f"in_keys must hold one observation key, got {in_keys}.")
        super().__init__(QuantileMean(network, num_quantiles), spec=spec, in_keys=in_keys, **kwargs)

    @property
    def quantile_network(self) -> ImplicitQuantileNetwork:
        """The network behind the mean."""
        return self.module[0].module.network
