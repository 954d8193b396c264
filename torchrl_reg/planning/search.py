"""The search of many trees side by side, and what is passed into it: selection, backup, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from torchrl_reg.functional import e2w_exploration, soft_policy
from torchrl_reg.planning.tree import Evaluate, Evaluation, Model, Nodes, Tree, allocate, check_minimum, forgetting
from torchrl_reg.regularizers import Regularizer
from torchrl_reg.regularizers.checks import check_discount

Uniform = Callable[[], Tensor]
Select = Callable[[Nodes, Uniform], Tensor]


@dataclass(frozen=True)
class _Bonus:
    """Base of the rules that add a bonus of width ``c`` to the action values."""

    c: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.c < math.inf:
            raise ValueError(f"c must be a finite number >= 0, got {self.c}.")


@dataclass(frozen=True)
class UCB1(_Bonus):
    r"""The action with the largest :math:`q(a) + c \sqrt{\ln N / n(a)}`; untried ones come first, ties go to the first.

    Of ``q [B, A]``, the current node of every tree.

    Source: Kocsis and Szepesvari 2006 (UCT), with ``c`` as the width in reward units.

    Args:
        c: width of the bonus >= 0, in reward units.

    Raises:
        ValueError: if ``c`` is negative or not finite.
    """

    scalar_rule: ClassVar[str] = "ucb1"
    c: float = math.sqrt(2)

    def __call__(self, nodes: Nodes, uniform: Uniform) -> Tensor:
        visits = nodes.visits
        bonus = (visits.sum(-1, keepdim=True).log() / visits).sqrt()
        return torch.where(visits == 0, math.inf, nodes.q + self.c * bonus).argmax(-1)


@dataclass(frozen=True)
class PUCTRule(_Bonus):
    r"""The action with the largest :math:`q(a) + c \, \rho(a) \sqrt{N + 1} / (n(a) + 1)`; ties go to the first.

    Of ``q [B, A]``. The prior :math:`\rho` is the evaluation's, else uniform. An untried action counts with the value
    of its node, unless the evaluation gave it one.

    Source: Silver et al. 2017 (AlphaGo Zero), as written in the code of Dam et al. 2021.

    Args:
        c: weight of the bonus >= 0, in reward units.

    Raises:
        ValueError: if ``c`` is negative or not finite.
    """

    scalar_rule: ClassVar[str] = "puct"
    c: float = 1.5

    def __call__(self, nodes: Nodes, uniform: Uniform) -> Tensor:
        visits, q = nodes.visits, nodes.q
        if not nodes.known:
            q = torch.where(visits == 0, nodes.value.unsqueeze(-1), q)
        prior = 1 / visits.shape[-1] if nodes.prior is None else nodes.prior
        return (q + self.c * prior * (visits.sum(-1, keepdim=True) + 1).sqrt() / (visits + 1)).argmax(-1)


@dataclass(frozen=True)
class E2W:
    r"""An action from :math:`(1 - \lambda) \pi + \lambda / A`, :math:`\lambda = \min(1, \epsilon A / \ln(N + 1))`.

    :math:`\pi` (``[B, A]``) is the policy that the node's regularizer found at its last backup: the softmax makes it
    E2W as in MENTS, the sparsemax TENTS.

    Source: Xiao et al. 2019 (MENTS); see :func:`torchrl_reg.functional.e2w_policy` for small ``N``.

    Args:
        epsilon: exploration > 0, without unit; well below ``ln(simulations) / A``.

    Raises:
        ValueError: if ``epsilon`` is not a finite number > 0.
    """

    #: Read by :class:`torchrl_reg.planning.Planner`: the rule follows the policy of a regularizer.
    follows_policy: ClassVar[bool] = True
    scalar_rule: ClassVar[str] = "e2w"
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        e2w_exploration(torch.zeros(()), 1, self.epsilon)

    def __call__(self, nodes: Nodes, uniform: Uniform) -> Tensor:
        if nodes.pi is None:
            raise ValueError("E2W needs a backup with a regularizer, whose policy it follows, got averaged returns.")
        num_actions = nodes.pi.shape[-1]
        lam = e2w_exploration(nodes.visits.sum(-1, keepdim=True), num_actions, self.epsilon)
        return drawn(nodes.pi.lerp(lam.new_tensor(1 / num_actions), lam), uniform())


def drawn(pi: Tensor, u: Tensor) -> Tensor:
    """The action ``[B]`` that ``u [B]`` in [0, 1) draws from ``pi [B, A]``: the first with a larger cumulative sum."""
    # Rounding may put u at the very end.
    return (pi.cumsum(-1) <= u.unsqueeze(-1)).sum(-1).clamp(max=pi.shape[-1] - 1)


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
        select: chooses actions at nodes, see :mod:`torchrl_reg.planning.search`.
        backup: updates the path, see :mod:`torchrl_reg.planning.search`.
        evaluate: values new states, see :class:`Evaluation`; by default they are worth 0.
        gamma: discount in [0, 1].
        max_depth: maximal number of actions in one simulation; by default there is no limit.
        generator: draws the random numbers of ``select``; by default torch's own.
        uniform: the random numbers themselves, in [0, 1), ``[B, num_simulations, D]``, in place of a generator.
        watch: is called with the number of simulations so far and the trees, after each.
        dtype: of the statistics.

    Returns:
        The trees, of up to ``num_simulations + 1`` nodes.

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
    check_minimum(1, num_simulations=num_simulations)
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
        """True where an outcome of an edge has a node ``[B]``, and that node's row (without one the root's)."""
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


class RandomRollout:
    r"""The return :math:`\sum_t \gamma^t r_t` ``[M]`` of random actions until the episode ends or ``max_steps``.

    The actions are uniform, the returns in reward units.

    States that the model keeps on the way (snapshots of an emulator) are released at once.

    Source: Kocsis and Szepesvari 2006.

    Args:
        model: the model to plan in.
        max_steps: largest number of steps, >= 1.
        gamma: discount in [0, 1].
        generator: draws the actions; by default torch's own.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> from torchrl_reg.planning import TabularModel
        >>> from torchrl_reg.tabular import gridworld
        >>> RandomRollout(TabularModel(gridworld(["G."], 0.5)), max_steps=1, gamma=0.9)(torch.tensor([1])).value.shape
        torch.Size([1])
    """

    def __init__(
        self, model: Model, *, max_steps: int, gamma: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        check_minimum(1, max_steps=max_steps)
        self.gamma = check_discount(gamma, "gamma")
        self.model, self.max_steps, self.generator = model, max_steps, generator

    def __call__(self, state: Tensor) -> Evaluation:
        value = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        index = torch.arange(len(state), device=state.device)
        with forgetting(self.model):
            for step in range(self.max_steps):
                action = torch.randint(self.model.num_actions, (len(state),), generator=self.generator)
                reward, state, ended = self.model.step(state, action.to(state.device))
                value[index] += self.gamma**step * reward
                state, index = state[~ended], index[~ended]
                if len(index) == 0:
                    break
        return Evaluation(value)


class QEvaluation:
    r"""A Q-network's values: those of the untried actions, their regularized maximum for the leaf, and its policy.

    Args:
        q_network: observations ``[M, *O]`` -> action values ``[M, A]``.
        regularizer: its value is that of the leaf, see :mod:`torchrl_reg.regularizers`.
        prior_tau: temperature > 0 of the prior, softmax of the action values, in reward units; None is the
            regularizer's policy.
        observe: states ``[M, *S]`` -> observations; None where the state is the observation.
        use_q: whether untried actions have the network's values; else it gives values and priors of nodes alone.

    Example:
        >>> from torchrl_reg.regularizers import Entropy
        >>> evaluate = QEvaluation(nn.Linear(4, 2), Entropy(0.1))
        >>> evaluate(torch.zeros(3, 4)).prior.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        q_network: Callable[[Tensor], Tensor],
        regularizer: nn.Module,
        *,
        prior_tau: float | None = None,
        observe: Callable[[Tensor], Tensor] | None = None,
        use_q: bool = True,
    ) -> None:
        self.q_network, self.regularizer, self.observe, self.use_q = q_network, regularizer, observe, use_q
        self.prior_tau = prior_tau

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Evaluation:
        q = self.q_network(state if self.observe is None else self.observe(state))
        out = self.regularizer(q)
        prior = out.pi if self.prior_tau is None else soft_policy(q, self.prior_tau)
        return Evaluation(out.value, q if self.use_q else None, prior)
