"""UCT on tables, compiled by numba: the same trees as the general search, a hundred times as fast for one tree.

Shapes: ``B`` trees, ``N`` nodes of a tree, ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.planning.planners import Planner, SearchResult
from torchrl_reg.planning.selection import UCB1
from torchrl_reg.planning.tree import Evaluation, Tables, allocate


def search_tables(planner: Planner, tables: Tables, state: Tensor) -> SearchResult:
    """Searches from ``state [B]`` with ``planner``, a UCT, compiled; grows the trees of ``planner(model, state)``.

    Values are in reward units.

    The first call of a process compiles for some seconds. Needs numba: ``pip install -e ".[planning]"``.

    Args:
        planner: selects by UCB1 and averages returns.
        tables: the model, and the values of its states.
        state: states to search from ``[B]``, int64.

    Raises:
        ValueError: if the planner searches differently, the tables do not fit each other, or numba is not installed.

    Example:
        >>> from torchrl_reg.planning import UCT, SyntheticTrees
        >>> trees = SyntheticTrees(branching=4, depth=3, num_trees=2, seed=0)
        >>> search = UCT(num_simulations=200)
        >>> found = search_tables(search, trees.tables(), trees.roots())  # doctest: +SKIP
        >>> torch.equal(found.visits, search(trees, trees.roots()).visits)  # doctest: +SKIP
        True
    """
    if not isinstance(planner.select, UCB1) or planner.regularizer is not None or planner.dtype != torch.float64:
        raise ValueError("planner must be a UCT in float64, got another rule of selection, a regularizer or a dtype.")
    num_states, num_actions = tables.successor.shape
    shapes = [list(x.shape) for x in (tables.reward, tables.terminal, tables.value)]
    if shapes != [[num_states, num_actions], [num_states], [num_states]]:
        raise ValueError(f"tables must be [S, A], [S, A], [S] and [S], got {[num_states, num_actions]} and {shapes}.")
    search = _compiled()
    size = (planner.num_simulations + 1, num_actions, 1)
    tree = allocate(state, size, Evaluation(tables.value[state]), dtype=torch.float64, with_policy=False)
    given = tuple(x.contiguous().numpy() for x in vars(tables).values())
    grown = tuple(x.numpy() for x in vars(tree).values() if isinstance(x, Tensor))
    search(given, grown, planner.select.c, planner.gamma, planner.max_depth or planner.num_simulations)
    return planner.result(tree)


@cache
def _compiled() -> Callable[..., None]:
    try:
        import numba
    except ImportError:
        raise ValueError('search_tables needs numba, got none: pip install -e ".[planning]".') from None
    return numba.njit(cache=False)(_search)


def _search(tables: Any, tree: Any, c: float, gamma: float, max_depth: int) -> None:
    """Grows every tree in place; plain loops, as numba needs them, in the order of ``torchrl_reg.planning.mcts``.

    ``tables`` and ``tree`` are the arrays of :class:`Tables` and :class:`Tree`, in the order of their fields.
    """
    successor, reward, terminal, leaf_value = tables
    state, children, visits, mean_reward, q, value, passed, alive = tree
    num_trees, num_nodes, num_actions = visits.shape
    nodes, actions = [0] * num_nodes, [0] * num_nodes
    for b in range(num_trees):
        for number in range(1, num_nodes):
            depth, at, child, total = 0, 0, 0, 0.0
            while depth < max_depth:
                count = 0.0
                for a in range(num_actions):
                    count += visits[b, at, a]
                log, action, best = math.log(max(count, 1.0)), 0, -math.inf
                for a in range(num_actions):
                    n = visits[b, at, a]
                    score = math.inf if n == 0 else q[b, at, a] + c * math.sqrt(log / n)
                    if score > best:
                        action, best = a, score
                nodes[depth], actions[depth] = at, action
                depth += 1
                child = children[b, at, action, 0]
                if child < 0:
                    child = number
                    there = successor[state[b, at], action]
                    children[b, at, action, 0], state[b, child] = child, there
                    mean_reward[b, at, action] = reward[state[b, at], action]
                    value[b, child] = 0.0 if terminal[there] else leaf_value[there]
                    break
                if alive[b, child] == 0:
                    break
                at = child
            total = value[b, child]
            passed[b, child] += 1
            if not terminal[state[b, child]]:
                alive[b, child] += 1
            for i in range(depth - 1, -1, -1):
                at, action = nodes[i], actions[i]
                total = mean_reward[b, at, action] + gamma * total
                visits[b, at, action] += 1
                q[b, at, action] += (total - q[b, at, action]) / visits[b, at, action]
                passed[b, at] += 1
                alive[b, at] += 1
                value[b, at] += (total - value[b, at]) / alive[b, at]
