"""Implicit quantile network: a state's features modulated by an embedding of the quantile fraction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ImplicitQuantileNetwork(nn.Module):
    """Quantile values ``z(s, a, sigma) = head(psi(s) * phi(sigma))`` with a cosine embedding of the fraction.

    ``phi(sigma) = relu(W cos(pi i sigma) + b)``, ``i = 1..num_cosines``; Dopamine starts at 1, the paper writes 0.

    Args:
        torso: maps one observation tensor ``[*B, ...]`` to features ``[*B, F]``.
        num_features: F.
        num_actions: A.
        num_cosines: size of the cosine basis.
        num_cells: width of the hidden layer of the head.

    Quantile values are in reward units, fractions in [0, 1].

    Source: Dabney et al., "Implicit Quantile Networks", ICML 2018, section 3.1.

    >>> net = ImplicitQuantileNetwork(nn.Linear(4, 16), num_features=16, num_actions=3, num_cells=32)
    >>> net(torch.randn(8, 4), torch.rand(8, 5)).shape
    torch.Size([8, 5, 3])
    """

    def __init__(
        self,
        torso: nn.Module,
        *,
        num_features: int,
        num_actions: int,
        num_cosines: int = 64,
        num_cells: int = 512,
    ) -> None:
        super().__init__()
        self.torso = torso
        self.embedding = nn.Linear(num_cosines, num_features)
        self.head = nn.Sequential(nn.Linear(num_features, num_cells), nn.ReLU(), nn.Linear(num_cells, num_actions))
        self.num_cosines = num_cosines

    def features(self, observation: Tensor) -> Tensor:
        """``psi(s) [*B, F]``: computed once for all the fractions asked of a state."""
        return self.torso(observation)

    def quantiles(self, features: Tensor, fractions: Tensor) -> Tensor:
        """Quantile values ``[*B, N, A]`` for ``features [*B, F]`` and ``fractions [*B, N]`` (or ``[N]`` for all)."""
        multiples = torch.arange(1, self.num_cosines + 1, device=fractions.device, dtype=fractions.dtype)
        cosines = torch.cos(math.pi * multiples * fractions.unsqueeze(-1))
        embedded = torch.relu(self.embedding(cosines.to(features.dtype)))
        return self.head(features.unsqueeze(-2) * embedded)

    def forward(self, observation: Tensor, fractions: Tensor) -> Tensor:
        """Quantile values ``[*B, N, A]`` at ``fractions [*B, N]``."""
        return self.quantiles(self.features(observation), fractions)
