"""Synthetic trees with noisy leaves: the benchmark of MENTS and its relatives.

Shapes: ``T`` trees, ``k`` actions, ``d`` depth, ``L = k^d`` leaves, ``M`` states.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchrl_reg.planning.scalar_models import Tables
from torchrl_reg.planning.scalar_search import Scalar
from torchrl_reg.planning.search import zero_evaluation
from torchrl_reg.planning.tree import Evaluate, check_at_least


class SyntheticTrees:
    r"""``T`` trees of branching ``k`` and depth ``d`` whose leaves give a noisy reward; nothing else does.

    Each edge has a weight drawn from U(0, 1); a leaf's mean is the sum of the weights on its way, scaled so that the
    means of a tree's leaves fill [0, 1]. Entering a leaf ends the episode with a reward drawn from :math:`N(mean,
    noise^2)`. A state is ``tree * nodes + node`` (``[M]``, int64), nodes counted by level from the root, 0: the
    children of ``n`` are ``k n + 1`` to ``k n + k``.

    Source: Xiao et al. 2019 (MENTS), section 5; the details are those of the code of Dam et al. 2021.

    Args:
        branching: actions k >= 1.
        depth: d >= 1.
        num_trees: T >= 1.
        noise: standard deviation of a leaf's reward >= 0, in reward units.
        seed: of the trees, and of the noise.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> trees = SyntheticTrees(branching=2, depth=3, num_trees=2, seed=0)
        >>> trees.leaf_mean.shape, trees.leaf_mean.amin(-1).tolist(), trees.leaf_mean.amax(-1).tolist()
        (torch.Size([2, 8]), [0.0, 0.0], [1.0, 1.0])
    """

    num_outcomes = 1

    def __init__(self, branching: int, depth: int, num_trees: int = 1, *, noise: float = 0.0, seed: int) -> None:
        check_at_least(1, branching=branching, depth=depth, num_trees=num_trees)
        if not noise >= 0:
            raise ValueError(f"noise must be a standard deviation >= 0, got {noise}.")
        self.num_actions, self.depth, self.num_trees, self.noise = branching, depth, num_trees, noise
        self.stochastic = noise > 0
        #: Nodes that are no leaves, and all nodes, of one tree.
        self.num_inner = sum(branching**level for level in range(depth))
        self.num_nodes = self.num_inner + branching**depth
        self.generator = torch.Generator().manual_seed(seed)
        total = torch.zeros(num_trees, 1, dtype=torch.float64)
        for level in range(depth):
            weight = torch.rand(num_trees, branching ** (level + 1), generator=self.generator, dtype=torch.float64)
            total = total.repeat_interleave(branching, -1) + weight
        low, high = total.amin(-1, keepdim=True), total.amax(-1, keepdim=True)
        #: Mean rewards of the leaves ``[T, L]``, float64.
        self.leaf_mean = (total - low) / (high - low) if branching > 1 else torch.zeros_like(total)

    def roots(self) -> Tensor:
        """The root of every tree ``[T]``."""
        return torch.arange(self.num_trees) * self.num_nodes

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        reward, successor, terminated = self._quiet_step(state, action)
        if self.noise > 0:
            noise = torch.randn(len(reward), generator=self.generator, dtype=reward.dtype)
            reward = torch.where(terminated, reward + self.noise * noise, reward)
        return reward, successor, terminated

    def _quiet_step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A step without noise."""
        tree = torch.div(state, self.num_nodes, rounding_mode="floor")
        node = (state - tree * self.num_nodes) * self.num_actions + 1 + action
        leaf = node - self.num_inner
        reward = self.leaf_mean[tree, leaf.clamp(min=0)]
        return torch.where(leaf >= 0, reward, 0.0), tree * self.num_nodes + node, leaf >= 0

    def scalar(self, evaluate: Evaluate) -> Scalar | None:
        """For searches tree by tree: of trees without noise whose states are not evaluated."""
        if self.stochastic or evaluate is not zero_evaluation:
            return None
        sizes = (self.num_actions, self.num_nodes, self.num_inner)
        return Scalar(_step, _leaf, (self.leaf_mean.flatten(), *sizes), compiles=True)

    def tables(self) -> Tables:
        """The same trees without noise, for :func:`torchrl_reg.planning.search_tables`; leaves are worth 0."""
        size = self.num_trees * self.num_nodes
        state = torch.arange(size).unsqueeze(-1).repeat(1, self.num_actions)
        inner = state[:, 0] % self.num_nodes < self.num_inner
        reward = torch.zeros(size, self.num_actions, dtype=torch.float64)
        reward[inner], state[inner], _ = self._quiet_step(state[inner], torch.arange(self.num_actions))
        return Tables(state, reward, ~inner, torch.zeros(size, dtype=torch.float64))

    def root_q(self, regularizer: nn.Module, gamma: float = 1.0) -> Tensor:
        """Exact action values of the roots ``[T, k]`` under a regularizer, from the leaves backwards."""
        q = self.leaf_mean
        for level in reversed(range(1, self.depth)):
            q = gamma * regularizer(q.view(self.num_trees, self.num_actions**level, self.num_actions)).value
        return q

    def root_value(self, regularizer: nn.Module, gamma: float = 1.0) -> Tensor:
        """Exact values of the roots ``[T]`` under a regularizer."""
        return regularizer(self.root_q(regularizer, gamma)).value


def _step(data: Any, states: Any, at: int, action: int, node: int) -> tuple[float, bool]:
    leaf_mean, num_actions, num_nodes, num_inner = data
    tree = states[at] // num_nodes
    there = (states[at] - tree * num_nodes) * num_actions + 1 + action
    states[node] = tree * num_nodes + there
    if there < num_inner:
        return 0.0, False
    return leaf_mean[tree * (num_nodes - num_inner) + there - num_inner], True


def _leaf(data: Any, states: Any, node: int, q: Any, prior: Any) -> float:
    return 0.0
