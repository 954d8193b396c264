"""Monte-Carlo tree search of many trees side by side; what it does at each step is passed in.

Shapes: ``B`` trees, ``N`` nodes, ``A`` actions, ``K`` outcomes kept of an action, ``D`` depth of a simulation, ``*S``
one state. Inside, nodes are rows ``b N + i`` of flat arrays and actions of nodes are edges ``row A + a``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from torchrl_reg.planning.selection import Select
from torchrl_reg.planning.tree import Evaluate, Evaluation, Model, Nodes, Tree, allocate


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
        reward: reward there ``[D, B]``.
        taken: places ``d B + b`` in ``[D, B]`` where a simulation acted, by depth.
        last: the last edge of each simulation ``[B]``.
        slot: which outcome of that edge it met ``[B]``.
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
    reward: Tensor
    last: Tensor
    slot: Tensor
    state: Tensor
    leaf: Tensor
    alive: Tensor
    leaf_value: Tensor


class Backup(Protocol):
    """Updates ``q`` (``[B N, A]``, reward units), ``value`` and ``pi`` of a flat tree along a path that was counted.

    Attributes:
        keeps_policy: whether the tree needs room for ``pi``.
    """

    @property
    def keeps_policy(self) -> bool:
        """Whether the tree needs room for ``pi``."""

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
        model: what is planned in, see :class:`Model`.
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
    draw = _Draw(len(state), state.device, dtype, generator, uniform)
    search = _Search(model, evaluate, state, num_simulations + 1, dtype, with_policy=backup.keeps_policy)
    for simulation in range(num_simulations):
        path = search.descend(select, num_simulations if max_depth is None else max_depth, draw)
        search.expand(path, simulation + 1)
        search.count(path)
        backup(search.flat, path, gamma)
        draw.next_simulation()
        if watch is not None:
            watch(simulation + 1, search.tree)
    return search.tree


def check_search(num_simulations: int, max_depth: int | None, gamma: float) -> None:
    """Raises ValueError unless ``num_simulations`` and ``max_depth`` are at least 1 and ``gamma`` is in [0, 1]."""
    if num_simulations < 1:
        raise ValueError(f"num_simulations must be at least 1, got {num_simulations}.")
    if max_depth is not None and max_depth < 1:
        raise ValueError(f"max_depth must be at least 1 or None, got {max_depth}.")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}.")


class _Draw:
    """Uniform random numbers ``[B]``, from a generator or from a table ``[B, num_simulations, D]``."""

    def __init__(
        self,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        generator: torch.Generator | None,
        table: Tensor | None,
    ) -> None:
        self._size, self._like = batch, {"dtype": dtype, "device": device}
        self._generator, self._table = generator, table
        self._simulation = self._count = 0

    def __call__(self) -> Tensor:
        if self._table is None:
            return torch.rand(self._size, generator=self._generator, **self._like)  # type: ignore[call-overload]
        self._count += 1
        return self._table[:, self._simulation, self._count - 1]

    def next_simulation(self) -> None:
        self._simulation, self._count = self._simulation + 1, 0


class _Search:
    """The trees of one search, and the three steps of a simulation that come before the backup."""

    def __init__(
        self,
        model: Model,
        evaluate: Evaluate,
        state: Tensor,
        num_nodes: int,
        dtype: torch.dtype,
        *,
        with_policy: bool,
    ) -> None:
        self.model, self.evaluate = model, evaluate
        self.actions, self.outcomes = model.num_actions, model.num_outcomes
        evaluation = evaluate(state)
        self.tree = allocate(
            state,
            num_nodes,
            self.actions,
            self.outcomes,
            dtype=dtype,
            with_policy=with_policy,
            with_prior=evaluation.prior is not None,
            known=evaluation.q is not None,
        )
        self.flat = self.tree.flat()
        self.edge_reward, self.edge_visits = self.flat.reward.view(-1), self.flat.visits.view(-1)
        self.children = self.flat.children.view(-1)
        self.root = torch.arange(len(state), device=state.device) * num_nodes
        self._enter(self.root, evaluation)

    def descend(self, select: Select, max_depth: int, draw: _Draw) -> Path:
        """Follows ``select`` until every simulation has left its tree, terminated or is ``max_depth`` deep."""
        row, sampled = self.root, self.model.stochastic
        state = self.flat.state[row] if sampled else row
        active = alive = torch.ones_like(row, dtype=torch.bool)
        slot = torch.zeros_like(row)
        nodes: list[Nodes] = []
        actions, edges, actives, rewards = [], [], [], []
        while len(nodes) < max_depth:
            nodes.append(Nodes(self.flat, row))
            action = select(nodes[-1], draw)
            edge = row * self.actions + action
            if sampled:
                reward, state, alive = self._sample(state, action, active, alive)
                slot = torch.where(active, self._slot(edge, state), slot)
                rewards.append(reward)
            actions.append(action)
            edges.append(edge)
            actives.append(active)
            exists, child = self._child(edge, slot)
            # A node reached only after the episode had ended is still a leaf: it was never evaluated.
            active = active & exists & (self.flat.alive.index_select(0, child) > 0)
            active = active & alive if sampled else active
            if not active.any():
                break
            row = torch.where(active, child, row)
        reward = torch.stack(rewards) if sampled else torch.zeros(())
        edge, on = torch.stack(edges), torch.stack(actives)
        taken = on.flatten().nonzero().squeeze(-1)
        last = edge.gather(0, on.sum(0, keepdim=True) - 1).squeeze(0)
        exists, child = self._child(last, slot)
        leaf = torch.where(exists, child, -1)
        # The leaf's value is known once the leaf is.
        return Path(self.root, sampled, nodes, actions, edge, on, taken, reward, last, slot, state, leaf, alive, leaf)

    def _child(self, edge: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Whether an outcome of the edge has a node ``[B]``, and that node's row (without one the root's)."""
        at = edge if self.outcomes == 1 else edge * self.outcomes + slot
        child = self.children.index_select(0, at)
        return child >= 0, self.root + child.clamp(min=0)

    def expand(self, path: Path, number: int) -> None:
        """Adds node ``number`` where the simulation came to a state that the tree does not have, and values leaves."""
        added = path.leaf < 0
        (index,) = added.nonzero(as_tuple=True)
        row, edge = self.root[index] + number, path.last[index]
        if self.model.stochastic:
            state, alive = path.state[index], path.alive[index]
        else:
            source = torch.div(edge, self.actions, rounding_mode="floor")
            reward, state, ended = self.model.step(self.flat.state[source], edge - source * self.actions)
            alive = ~ended
            self.edge_reward[edge] = reward.to(self.edge_reward)
            path.reward = self.edge_reward[path.edges]
        path.leaf = torch.where(added, self.root + number, path.leaf)
        if not self.model.stochastic:
            path.alive = (self.flat.alive[path.leaf] > 0).index_put((index,), alive)
        self.children[edge * self.outcomes + path.slot[index]] = number
        self.flat.state[row] = state
        fresh = path.alive & (self.flat.alive[path.leaf] == 0)
        if fresh.any():
            met = path.state if self.model.stochastic else self.flat.state[path.leaf]
            self._enter(path.leaf[fresh], self.evaluate(met[fresh]))
        path.leaf_value = self.flat.value[path.leaf] * path.alive

    def count(self, path: Path) -> None:
        """Counts the visits, and averages sampled rewards."""
        edges = path.edges.flatten().index_select(0, path.taken)
        self.edge_visits[edges] += 1
        rows = torch.cat((torch.div(edges, self.actions, rounding_mode="floor"), path.leaf))
        self.flat.passed[rows] += 1
        on_path = torch.ones_like(edges, dtype=torch.bool)
        self.flat.alive[rows] += torch.cat((on_path, path.alive)).to(self.flat.alive)
        if self.model.stochastic:
            path.reward = path.reward.to(self.edge_reward)
            mean, met = self.edge_reward[edges], path.reward.flatten().index_select(0, path.taken)
            self.edge_reward[edges] = mean + (met - mean) / self.edge_visits[edges]

    def _enter(self, rows: Tensor, evaluation: Evaluation) -> None:
        """Writes the evaluation of new nodes."""
        self.flat.value[rows] = evaluation.value.to(self.flat.value)
        for here, given in ((self.flat.q, evaluation.q), (self.flat.prior, evaluation.prior)):
            if here is not None and given is not None:
                here[rows] = given.to(here)

    def _sample(self, state: Tensor, action: Tensor, active: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and whether it is alive; simulations that have ended stay where they are."""
        if active.all():
            reward, state, ended = self.model.step(state, action)
            return reward, state, ~ended
        (index,) = active.nonzero(as_tuple=True)
        reward, next_state, ended = self.model.step(state[index], action[index])
        rewards = torch.zeros(len(state), dtype=reward.dtype, device=reward.device).index_put((index,), reward)
        return rewards, state.index_put((index,), next_state), alive.index_put((index,), ~ended)

    def _slot(self, edge: Tensor, state: Tensor) -> Tensor:
        """Which child of the edge stands for ``state``: the one that holds it, else the first free, else the last."""
        if self.outcomes == 1:
            return torch.zeros_like(edge)
        children = self.children.view(-1, self.outcomes)[edge]
        exists = children >= 0
        there = self.flat.state[self.root.unsqueeze(-1) + children]
        same = (there == state.unsqueeze(1)).flatten(2).all(-1) if state.ndim > 1 else there == state.unsqueeze(1)
        rank = 2 * (same & exists).long() + (~exists).long()
        return torch.where(rank.any(-1), rank.argmax(-1), self.outcomes - 1)
