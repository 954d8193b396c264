"""Implicit quantile network: a state's features modulated by an embedding of the quantile fraction; and its actor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from tensordict import NestedKey
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import QValueActor

from torchrl_reg.modules.layers import check_network, layer_by_layer
from torchrl_reg.modules.q_actors import explores
from torchrl_reg.modules.stacked import of_each_network
from torchrl_reg.regularizers.recorded import Recorded
from torchrl_reg.torchrl_compat import is_listened_to, is_transformed


class ImplicitQuantileNetwork(nn.Module):
    """Quantile values ``z(s, a, sigma) = head(psi(s) * phi(sigma))`` with a cosine embedding of the fraction.

    ``phi(sigma) = relu(W cos(pi i sigma) + b)``, ``i = 1..num_cosines``, or from 0 on.

    Args:
        torso: maps one observation tensor ``[*B, ...]`` to features ``[*B, F]``.
        num_features: F.
        num_actions: A.
        num_cosines: size of the cosine basis.
        num_cells: width of the hidden layer of the head.
        first_cosine: the first i: 1 in Dopamine, 0 in the paper and in Beyond The Rainbow.
        head: maps ``[*B, N, F]`` to ``[*B, N, A]`` in place of that hidden layer and a linear one.

    Quantile values are in reward units, fractions in [0, 1].

    Raises:
        ValueError: no torso.

    Source: Dabney et al., "Implicit Quantile Networks", ICML 2018, section 3.1.

    >>> net = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> net(torch.randn(8, 4), torch.rand(8, 5)).shape
    torch.Size([8, 5, 3])
    """

    #: Takes the place of the class where several networks are stacked.
    stacked_form: ClassVar[type[ImplicitQuantileNetwork]]

    def __init__(
        self,
        torso: nn.Module,
        *,
        num_features: int,
        num_actions: int,
        num_cosines: int = 64,
        num_cells: int = 512,
        first_cosine: int = 1,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.torso = check_network(torso, "torso")
        self.embedding = nn.Linear(num_cosines, num_features)
        if head is None:
            head = nn.Sequential(nn.Linear(num_features, num_cells), nn.ReLU(), nn.Linear(num_cells, num_actions))
        self.head = check_network(head, "head")
        self.num_cosines, self.first_cosine = num_cosines, first_cosine

    def features(self, observation: Tensor) -> Tensor:
        """``psi(s) [*B, F]``: computed once for all the fractions asked of a state."""
        return self.torso(observation)

    def quantiles(self, features: Tensor, fractions: Tensor) -> Tensor:
        """Quantile values ``[*B, N, A]`` for ``features [*B, F]`` and ``fractions [*B, N]`` (or ``[N]`` for all)."""
        return self._in_one_pass([features], [fractions])[0]

    def quantiles_of(self, features: Sequence[Tensor], fractions: Sequence[Tensor]) -> Sequence[Tensor]:
        """:meth:`quantiles` of several states in one pass; ``features`` have one shape, ``fractions`` all but the N."""
        if getattr(self.quantiles, "__func__", None) is not ImplicitQuantileNetwork.quantiles:  # a subclass has its own
            return [self.quantiles(state, levels) for state, levels in zip(features, fractions, strict=True)]
        return self._in_one_pass(features, fractions)

    def _in_one_pass(self, features: Sequence[Tensor], fractions: Sequence[Tensor]) -> Sequence[Tensor]:
        counts = [levels.shape[-1] for levels in fractions]
        joined = fractions[0] if len(counts) == 1 else torch.cat(list(fractions), -1)
        multiples = torch.arange(self.num_cosines, device=joined.device, dtype=joined.dtype) + self.first_cosine
        cosines = (math.pi * multiples * joined.unsqueeze(-1)).cos_()
        z, ends = self._values(features, cosines.to(features[0].dtype), counts), list(accumulate(counts))
        # Not split, whose outputs may not be written into.
        return [z] if len(ends) == 1 else [z[..., end - n : end, :] for end, n in zip(ends, counts, strict=True)]

    def _values(self, features: Sequence[Tensor], cosines: Tensor, counts: list[int]) -> Tensor:
        """Quantile values ``[*B, sum(counts), A]`` of the ``features``, side by side."""
        embedded = self.embedding(cosines)
        # In the memory of the layer before where nobody else sees it, because fresh memory costs more.
        compiling = torch.compiler.is_compiling()
        embedded = embedded.relu() if compiling or is_listened_to(self.embedding) else embedded.relu_()
        head = self.head if compiling else layer_by_layer(self.head)
        return head(_products(features, embedded, counts))

    def forward(self, observation: Tensor, fractions: Tensor) -> Tensor:
        """Quantile values ``[*B, N, A]`` at ``fractions [*B, N]``."""
        return self.quantiles(self.features(observation), fractions)


class StackedQuantileNetwork(ImplicitQuantileNetwork):
    """``S`` quantile networks: features ``[S, *B, F]`` and fractions ``[S, *B, N]`` (or ``[N]`` for all).

    Torsos run as one; what comes after the fractions runs network by network, which for so many rows is faster.
    """

    def _values(self, features: Sequence[Tensor], cosines: Tensor, counts: list[int]) -> Tensor:
        embeddings, heads = of_each_network([self.embedding, nn.ReLU()]), of_each_network(list(self.head))  # type: ignore[call-overload]
        if cosines.ndim == 2:
            cosines = cosines.expand(len(heads), 1, *cosines.shape)
        made = []
        for number, (embedding, head) in enumerate(zip(embeddings, heads, strict=True)):
            own = [each[number] for each in features]
            made.append(head(_products(own, embedding(cosines[number]), counts)))
        return torch.stack(made)


ImplicitQuantileNetwork.stacked_form = StackedQuantileNetwork


def _products(features: Sequence[Tensor], embedded: Tensor, counts: list[int]) -> Tensor:
    """Each of ``features [*B, F]`` times its ``counts`` rows of ``embedded [*B, N, F]``, side by side.

    In the memory of ``embedded`` where no gradient asks for that.
    """
    first = features[0]
    same = first.shape[:-1] == embedded.shape[:-2] and first.dtype == embedded.dtype
    seen = torch.is_grad_enabled() or torch.compiler.is_compiling() or any(map(is_transformed, features))
    pairs = zip(features, embedded.split(counts, -2), strict=True)
    if seen or not same:
        made = [state.unsqueeze(-2) * part for state, part in pairs]
        return made[0] if len(made) == 1 else torch.cat(made, -2)
    for state, part in pairs:
        part.mul_(state.unsqueeze(-2))
    return embedded


class QuantileMean(nn.Module):
    """Mean over ``num_quantiles`` fractions: ``[*B, A]`` Q-values of a quantile network.

    Fractions are drawn uniformly; under deterministic exploration they are the midpoints ``(i + 1/2) / K``, so that an
    evaluation does not depend on a random draw.
    """

    #: Acting draws random numbers, which are not those of a network that acts for several seeds.
    draws = True

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
