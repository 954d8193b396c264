"""Backups of a simulation: averaged returns, or the regularized value of each node.

Shapes: ``B`` trees, ``A`` actions, ``D`` depth of the simulation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchrl_reg.planning.search import Path
from torchrl_reg.planning.tree import Tree
from torchrl_reg.regularizers import Regularizer


class AverageReturns:
    r"""``q(s, a)`` and ``v(s)`` are the mean of the returns that followed, as in UCT.

    :math:`q \leftarrow q + (G - q) / n` with :math:`G_t = r_t + \gamma G_{t+1}` from the value of the leaf,
    for the edges ``[D, B]`` of a path, in reward units.

    Source: Kocsis and Szepesvari 2006.
    """

    keeps_policy = False

    def __call__(self, flat: Tree, path: Path, gamma: float) -> None:
        total, totals = path.leaf_value, []
        for active, reward in zip(path.active.flip(0), path.reward.flip(0), strict=True):
            total = torch.where(active, reward + gamma * total, total)
            totals.append(total)
        returns = torch.stack(totals[::-1]).flatten().index_select(0, path.taken)
        edges, rows = path.taken_edges, path.taken_rows
        q, visits = flat.q.view(-1), flat.visits.view(-1)
        q.index_add_(0, edges, (returns - q.index_select(0, edges)) / visits.index_select(0, edges))
        error = returns - flat.value.index_select(0, rows)
        flat.value.index_add_(0, rows, error / flat.alive.index_select(0, rows))


class RegularizedBackup:
    r"""The value of a node is the regularized maximum of its action values, :math:`v = \max_\pi \pi q - \Omega(\pi)`.

    :math:`q(s, a) = \bar r(s, a) + \gamma \sum_k (n_k / n) v(s_k)` over the outcomes ``k`` of the action, ``v`` being 0
    after a termination. Actions without a value, never tried and not evaluated either, are left out. The policy that
    attains the maximum is kept for E2W. Values are ``[B, A]``, in reward units.

    Source: Xiao et al. 2019 (MENTS) for the entropy, Dam et al. 2021 for the others.

    Args:
        regularizer: one of :mod:`torchrl_reg.regularizers`: ``Entropy`` gives MENTS, ``Tsallis`` TENTS, ``HardMax`` the
            maximum.
        parent_prior: RENTS: the prior of a node, for a ``PriorKL``, is its parent's policy at the parent's last backup,
            once each of the parent's actions has a value; before, and at the root, it is uniform.
    """

    keeps_policy = True

    def __init__(self, regularizer: Regularizer, *, parent_prior: bool = False) -> None:
        self.regularizer, self.parent_prior = regularizer, parent_prior

    def __call__(self, flat: Tree, path: Path, gamma: float) -> None:
        assert flat.pi is not None  # keeps_policy
        future, targets, values, policies = path.leaf_value, [], [], []
        for depth in reversed(range(len(path.nodes))):
            node, edge, active = path.nodes[depth], path.edges[depth], path.active[depth]
            if path.sampled:
                future = torch.where(active, _mean_value(flat, path.root, edge), future)
                reward = flat.reward.view(-1).index_select(0, edge)
            else:
                reward = path.reward[depth]
            target = reward + gamma * future
            action = path.actions[depth].unsqueeze(-1)
            q = node.q.scatter(-1, action, target.unsqueeze(-1))
            known = None if flat.known else (node.visits > 0).scatter(-1, action, True)
            value, pi = self._best(path, depth, q, known)
            future = torch.where(active, value, future)
            if path.sampled:
                flat.value[node.rows[active]] = future[active]
            targets.append(target)
            values.append(future)
            policies.append(pi)
        for held, at, found in (
            (flat.q.view(-1), path.taken_edges, targets),
            (flat.value, path.taken_rows, values),
            (flat.pi, path.taken_rows, policies),
        ):
            held.index_copy_(0, at, torch.cat(found[::-1]).index_select(0, path.taken))

    def _best(self, path: Path, depth: int, q: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """The regularizer's value ``[B]`` and policy ``[B, A]`` at action values ``q [B, A]`` at that depth."""
        if not self.parent_prior:
            return self.regularizer.value_and_policy(q, mask=known)
        log_prior = torch.full_like(q, -math.log(q.shape[-1]))
        if depth > 0:
            parent = path.nodes[depth - 1]
            assert parent.pi is not None
            # A policy may underflow, and a prior of 0 would exclude the action permanently.
            pi = parent.pi.clamp(min=torch.finfo(q.dtype).tiny)
            ready = (parent.visits > 0).all(-1, keepdim=True) | path.nodes[0].known
            log_prior = torch.where(ready, pi.log(), log_prior)
        best = self.regularizer(q, mask=known, log_prior=log_prior)
        return best.value, best.pi


def _mean_value(flat: Tree, root: Tensor, edge: Tensor) -> Tensor:
    """Value of an action's outcomes ``[B]``, weighted by how often they came; 0 for those that terminated."""
    children = flat.children.flatten(0, 1)[edge]
    rows = (root.unsqueeze(-1) + children).clamp(min=0)
    weight = torch.where(children >= 0, flat.alive[rows], 0.0)
    return (weight * flat.value[rows]).sum(-1) / flat.visits.view(-1)[edge]
