"""Monte-Carlo tree search of many trees side by side; selection, evaluation and backup are passed in.

Shapes: ``B`` trees, ``N`` nodes, ``A`` actions, ``K`` outcomes kept of an action, ``D`` depth of a simulation, ``*S``
one state. Inside, nodes are rows ``b N + i`` of flat arrays and actions of nodes are edges ``row A + a``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from torchrl_reg.planning.selection import Select, Uniform
from torchrl_reg.planning.tree import Evaluate, Evaluation, Model, Nodes, Tree, allocate, check_at_least
from torchrl_reg.regularizers.checks import check_discount


@dataclass
class Path:
    """Where one simulation of every tree went; a tree whose simulation has ended is no longer ``active``.

    Rewards and values are in reward units.

    Args:
        root: row of the root ``[B]``.
        sampled: whether transitions are sampled afresh at every visit.
        nodes: the node at each depth, ``D`` of them.
        actions: action taken there ``[B]``, ``D`` of them.
        edges: the edges that these are ``[D, B]``.
        active: whether the simulation got there ``[D, B]``, bool.
        taken: places ``d B + b`` in ``[D, B]`` where a simulation acted, by depth ``[P]``.
        taken_edges: the edges there ``[P]``.
        taken_rows: rows of the nodes there ``[P]``.
        reward: reward of the edges ``[D, B]``.
        outcome: the last edge of each simulation and the slot of its outcome, ``edge K + slot`` ``[B]``.
        state: the state that it reached ``[B, *S]``, where transitions are sampled.
        leaf: row of that state's node ``[B]``, -1 until there is one.
        alive: whether the episode had not terminated there ``[B]``, bool.
        leaf_value: value of that node ``[B]``, 0 where the episode terminated.
    """

    root: Tensor
    sampled: bool
    nodes: list[Nodes]
    actions: list[Tensor]
    edges: Tensor
    active: Tensor
    taken: Tensor
    taken_edges: Tensor
    taken_rows: Tensor
    reward: Tensor
    outcome: Tensor
    state: Tensor
    leaf: Tensor
    alive: Tensor
    leaf_value: Tensor


class Backup(Protocol):
    """Updates ``q`` (``[B N, A]``, reward units), ``value`` and ``pi`` of a flat tree along a path that was counted.

    Attributes:
        keeps_policy: whether the tree needs room for ``pi``.
    """

    keeps_policy: bool

    def __call__(self, flat: Tree, path: Path, gamma: float) -> None: ...


def zero_evaluation(state: Tensor) -> Evaluation:
    """Every new state is worth 0 reward units ``[M]``: nothing is known but what the search meets."""
    return Evaluation(torch.zeros(len(state), dtype=torch.float64, device=state.device))


@torch.no_grad()
def mcts(
    model: Model,
    state: Tensor,
    *,
    num_simulations: int,
    select: Select,
    backup: Backup,
    evaluate: Evaluate = zero_evaluation,
    gamma: float = 1.0,
    max_depth: int | None = None,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
    watch: Callable[[int, Tree], object] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tree:
    r"""Searches from each of ``B`` states and returns the trees.

    A simulation follows ``select`` from the root until it leaves the tree, terminates or is ``max_depth`` deep. Where
    it leaves the tree it adds the state it comes to as a new node, which ``evaluate`` values; then ``backup`` updates
    the nodes that it passed.

    *Stochastic transitions* are sampled afresh at every visit. Each action keeps its first ``K - 1`` different outcomes
    (states) apart as children of a chance node, whose value is their mean weighted by how often they came; all further
    outcomes share the last child, which is searched in open loop: its statistics are those of the state that happened
    to be there. So ``K = 1`` is an open-loop search, and with ``K`` the number of possible outcomes nothing is mixed.
    ``K`` is ``model.num_outcomes``.

    The cost is linear in the simulations and in their depth, and so is the memory in the simulations, see
    :meth:`Tree.bytes_per_node`. A batch of ``B`` gives the trees that ``B`` searches with the same random numbers give.

    Source: Kocsis and Szepesvari 2006; the form of the loop is the common one.

    Args:
        model: the model to plan in, see :class:`Model`.
        state: states to search from ``[B, *S]``; none is terminal.
        num_simulations: simulations of each tree >= 1.
        select: chooses actions at nodes, see :mod:`torchrl_reg.planning.selection`.
        backup: updates the path, see :mod:`torchrl_reg.planning.backup`.
        evaluate: values new states, see :class:`Evaluation`; by default they are worth 0.
        gamma: discount in [0, 1].
        max_depth: actions in one simulation at most; by default there is no limit.
        generator: draws the random numbers of ``select``; by default torch's own.
        uniform: the random numbers themselves, in [0, 1), ``[B, num_simulations, D]``, in place of a generator.
        watch: is called with the number of simulations so far and the trees, after each.
        dtype: of the statistics.

    Returns:
        The trees, of ``num_simulations + 1`` nodes at most.

    Raises:
        ValueError: if ``num_simulations`` or ``max_depth`` is below 1, ``gamma`` outside [0, 1], or there is no state.
    """
    check_search(num_simulations, max_depth, gamma)
    if state.ndim == 0 or len(state) == 0:
        raise ValueError(f"state must hold a state for each tree [B, *S], got shape {list(state.shape)}.")
    random = partial(torch.rand, len(state), generator=generator, dtype=dtype, device=state.device)
    search = _Search(model, evaluate, state, num_simulations + 1, dtype, with_policy=backup.keeps_policy)
    for simulation in range(num_simulations):
        draw = random if uniform is None else _read(uniform[:, simulation])
        path = search.descend(select, max_depth or num_simulations, draw)
        search.expand(path, simulation + 1)
        search.count(path)
        backup(search.flat, path, gamma)
        if watch is not None:
            watch(simulation + 1, search.tree)
    return search.tree


def check_search(num_simulations: int, max_depth: int | None, gamma: float) -> None:
    """Raises ValueError unless ``num_simulations`` and ``max_depth`` are at least 1 and ``gamma`` is in [0, 1]."""
    check_at_least(1, num_simulations=num_simulations)
    if max_depth is not None and max_depth < 1:
        raise ValueError(f"max_depth must be at least 1 or None, got {max_depth}.")
    check_discount(gamma, "gamma")


def _read(table: Tensor) -> Uniform:
    """Reads the columns ``[B]`` of ``table [B, D]``, one a call."""
    depth = count()
    return lambda: table[:, next(depth)]


class _Search:
    """The trees of one search, and the three steps of a simulation that come before the backup."""

    def __init__(
        self, model: Model, evaluate: Evaluate, state: Tensor, num_nodes: int, dtype: torch.dtype, *, with_policy: bool
    ) -> None:
        self.model, self.evaluate = model, evaluate
        self.actions, self.outcomes = model.num_actions, model.num_outcomes if model.stochastic else 1
        size = (num_nodes, self.actions, self.outcomes)
        self.tree = allocate(state, size, evaluate(state), dtype=dtype, with_policy=with_policy)
        self.flat = self.tree.flat()
        self.reward, self.visits = self.flat.reward.view(-1), self.flat.visits.view(-1)
        self.children = self.flat.children.view(-1)
        self.root = torch.arange(len(state), device=state.device) * num_nodes

    def descend(self, select: Select, max_depth: int, draw: Uniform) -> Path:
        """Follows ``select`` until every simulation has left its tree, terminated or is ``max_depth`` deep."""
        row, sampled = self.root, self.model.stochastic
        state = self.flat.state[row] if sampled else row
        active = alive = torch.ones_like(row, dtype=torch.bool)
        nodes: list[Nodes] = []
        actions, edges, actives, rewards, outcomes = [], [], [], [], []
        while len(nodes) < max_depth:
            nodes.append(Nodes(self.flat, row))
            actions.append(select(nodes[-1], draw))
            edges.append(row * self.actions + actions[-1])
            actives.append(active)
            if sampled:
                reward, state, alive = self._sample(state, actions[-1], active, alive)
                rewards.append(reward)
            outcomes.append(edges[-1] if self.outcomes == 1 else self._outcome(edges[-1], state))
            exists, child = self._child(outcomes[-1])
            # A node reached only after the episode had ended is still a leaf: it was never evaluated.
            active = active & exists & (self.flat.alive.index_select(0, child) > 0)
            active = active & alive if sampled else active
            if not active.any():
                break
            row = torch.where(active, child, row)
        reward = torch.stack(rewards) if sampled else torch.zeros(())
        edge, on = torch.stack(edges), torch.stack(actives)
        taken = on.flatten().nonzero().squeeze(-1)
        taken_edges = edge.flatten().index_select(0, taken)
        taken_rows = torch.div(taken_edges, self.actions, rounding_mode="floor")
        met = edge if self.outcomes == 1 else torch.stack(outcomes)
        last = met.gather(0, on.sum(0, keepdim=True) - 1).squeeze(0)
        exists, child = self._child(last)
        leaf = torch.where(exists, child, -1)
        ends = (last, state, leaf, alive, leaf)  # the leaf's value is known once the leaf is
        return Path(self.root, sampled, nodes, actions, edge, on, taken, taken_edges, taken_rows, reward, *ends)

    def _child(self, outcome: Tensor) -> tuple[Tensor, Tensor]:
        """Whether an outcome of an edge has a node ``[B]``, and that node's row (without one the root's)."""
        child = self.children.index_select(0, outcome)
        return child >= 0, self.root + child.clamp(min=0)

    def expand(self, path: Path, number: int) -> None:
        """Adds node ``number`` where the simulation came to a state that the tree does not have, and values leaves."""
        added = path.leaf < 0
        (index,) = added.nonzero(as_tuple=True)
        outcome = path.outcome[index]
        path.leaf = torch.where(added, self.root + number, path.leaf)
        if path.sampled:
            state = path.state[index]
        else:
            source = torch.div(outcome, self.actions, rounding_mode="floor")
            before = self.flat.state.index_select(0, source)
            reward, state, ended = self.model.step(before, outcome - source * self.actions)
            self.reward.index_copy_(0, outcome, reward.to(self.reward))
            path.reward = self.reward.index_select(0, path.edges.flatten()).view_as(path.edges)
            path.alive = (self.flat.alive.index_select(0, path.leaf) > 0).index_put((index,), ~ended)
        self.children.index_fill_(0, outcome, number)
        self.flat.state[self.root[index] + number] = state
        fresh = path.alive & (self.flat.alive.index_select(0, path.leaf) == 0)
        if fresh.any():
            met = path.state if path.sampled else self.flat.state[path.leaf]
            self.flat.enter(path.leaf[fresh], self.evaluate(met[fresh]))
        path.leaf_value = self.flat.value.index_select(0, path.leaf) * path.alive

    def count(self, path: Path) -> None:
        """Counts the visits, and averages sampled rewards."""
        edges, rows = path.taken_edges, torch.cat((path.taken_rows, path.leaf))
        once = self.flat.value.new_ones(len(rows))
        self.visits.index_add_(0, edges, once[: len(edges)])
        self.flat.passed.index_add_(0, rows, once)
        self.flat.alive.index_add_(0, rows, torch.cat((once[: len(edges)], path.alive.to(once))))
        if path.sampled:
            path.reward = path.reward.to(self.reward)
            mean, met = self.reward.index_select(0, edges), path.reward.flatten().index_select(0, path.taken)
            self.reward.index_copy_(0, edges, mean + (met - mean) / self.visits.index_select(0, edges))

    def _sample(self, state: Tensor, action: Tensor, active: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and whether it is alive; simulations that have ended stay where they are."""
        if active.all():
            reward, state, ended = self.model.step(state, action)
            return reward, state, ~ended
        (index,) = active.nonzero(as_tuple=True)
        reward, next_state, ended = self.model.step(state[index], action[index])
        rewards = torch.zeros(len(state), dtype=reward.dtype, device=reward.device).index_put((index,), reward)
        return rewards, state.index_put((index,), next_state), alive.index_put((index,), ~ended)

    def _outcome(self, edge: Tensor, state: Tensor) -> Tensor:
        """The edge's outcome for ``state``: the child that holds it, else the first free slot, else the last."""
        children = self.children.view(-1, self.outcomes)[edge]
        exists = children >= 0
        there = self.flat.state[self.root.unsqueeze(-1) + children]
        same = (there == state.unsqueeze(1)).flatten(2).all(-1) if state.ndim > 1 else there == state.unsqueeze(1)
        rank = 2 * (same & exists).long() + (~exists).long()
        return edge * self.outcomes + torch.where(rank.any(-1), rank.argmax(-1), self.outcomes - 1)
