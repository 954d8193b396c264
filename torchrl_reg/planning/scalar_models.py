"""Models that a search can step through one state at a time: tables, functions compiled by numba, Python functions.

Shapes: ``M`` states, ``S`` states of a table or numbers in one state, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torchrl_reg.planning.planners import Planner, SearchResult
from torchrl_reg.planning.scalar_search import Scalar, scalar_tree
from torchrl_reg.planning.search import zero_evaluation
from torchrl_reg.planning.tree import Evaluate, Evaluation


@dataclass(frozen=True)
class Tables:
    """A deterministic model as tables, with what its states are worth; rewards and values are in reward units.

    Args:
        successor: next state of an action ``[S, A]``, int64.
        reward: its reward ``[S, A]``, float64.
        terminal: whether episodes end in a state ``[S]``, bool.
        value: what a new leaf is worth ``[S]``, float64.
        q, prior: action values and probabilities that it begins with ``[S, A]``; None for none.
    """

    stochastic, num_outcomes = False, 1

    successor: Tensor
    reward: Tensor
    terminal: Tensor
    value: Tensor
    q: Tensor | None = None
    prior: Tensor | None = None

    @property
    def num_actions(self) -> int:
        """A."""
        return self.successor.shape[1]

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        following = self.successor[state, action]
        return self.reward[state, action], following, self.terminal[following]

    def evaluate(self, state: Tensor) -> Evaluation:
        """Values of ``state [M]``, for searches."""
        q, prior = (None if table is None else table[state] for table in (self.q, self.prior))
        return Evaluation(self.value[state], q, prior)

    def scalar(self, evaluate: Evaluate) -> Scalar | None:
        """For searches tree by tree, if states are valued by these tables or not at all."""
        if evaluate != self.evaluate and evaluate is not zero_evaluation:
            return None
        given = (
            self if evaluate == self.evaluate else Tables(self.successor, self.reward, self.terminal, self.value * 0)
        )
        none = self.value[:0]
        flat = [none if table is None else table.flatten() for table in (given.q, given.prior)]
        data = (self.successor.flatten(), self.reward.flatten(), self.terminal, given.value, *flat, self.num_actions)
        known, prior = given.q is not None, given.prior is not None
        return Scalar(_table_step, _table_leaf, data, compiles=True, known=known, has_prior=prior)


def _table_step(data: Any, states: Any, at: int, action: int, node: int) -> tuple[float, bool]:
    place = states[at] * data[6] + action
    states[node] = data[0][place]
    return data[1][place], data[2][states[node]]


def _table_leaf(data: Any, states: Any, node: int, q: Any, prior: Any) -> float:
    num_actions = data[6]
    for a in range(num_actions):
        if len(data[4]):
            q[node * num_actions + a] = data[4][states[node] * num_actions + a]
        if len(data[5]):
            prior[node * num_actions + a] = data[5][states[node] * num_actions + a]
    return data[3][states[node]]


def search_tables(planner: Planner, tables: Tables, state: Tensor, **random: Any) -> SearchResult:
    """``planner(tables, state, evaluate=tables.evaluate)``, compiled however small the search.

    Values are in reward units. The first call compiles for some seconds, later processes load the code from disk. Needs
    numba: ``pip install "torchrl_reg[planning]"``.

    Args:
        planner: with one of the package's rules and regularizers, in float64.
        tables: the model, and the values of its states.
        state: states to search from ``[B]``, int64.
        random: ``generator`` or ``uniform``, see :func:`torchrl_reg.planning.mcts`.

    Raises:
        ValueError: if the planner has another rule or dtype, the tables do not fit each other, or there is no numba.

    Example:
        >>> from torchrl_reg.planning import UCT, SyntheticTrees
        >>> trees = SyntheticTrees(branching=4, depth=3, num_trees=2, seed=0)
        >>> search = UCT(num_simulations=200)
        >>> found = search_tables(search, trees.tables(), trees.roots())  # doctest: +SKIP
        >>> torch.equal(found.visits, search(trees, trees.roots()).visits)  # doctest: +SKIP
        True
    """
    num_states, num_actions = tables.successor.shape
    shapes = [list(x.shape) for x in (tables.reward, tables.terminal, tables.value)]
    if shapes != [[num_states, num_actions], [num_states], [num_states]]:
        raise ValueError(f"tables must be [S, A], [S, A], [S] and [S], got {[num_states, num_actions]} and {shapes}.")
    tree = scalar_tree(planner, tables, state, evaluate=tables.evaluate, always=True, **random)
    if tree is None:
        raise ValueError("planner must have a rule and a regularizer of this package, in float64, got others.")
    return planner.result(tree)


class CompiledModel:
    r"""A deterministic model of functions that numba compiles; a state is a row ``[S]`` of numbers.

    Args:
        step: ``step(data, state [S], action, following [S])`` writes the next state and gives reward and terminated;
            plain or ``numba.njit``.
        num_actions: A.
        value: ``value(data, state [S])``, what a new leaf is worth, in reward units; None is 0.
        data: arrays and numbers that they read.

    A new leaf passes :math:`r + \gamma v` on. Source: ours.

    Example:
        >>> def walk(data, state, action, following):
        ...     following[0] = state[0] + 2 * action - 1
        ...     return 1.0 * (following[0] == 3), abs(following[0]) == 3
        >>> from torchrl_reg.planning import UCT
        >>> UCT(num_simulations=200, gamma=0.9)(CompiledModel(walk, 2), torch.zeros(1, 1)).action.tolist()
        [1]
    """

    stochastic, num_outcomes = False, 1

    def __init__(
        self,
        step: Callable[..., Any],
        num_actions: int,
        *,
        value: Callable[..., float] | None = None,
        data: tuple[Any, ...] = (),
    ) -> None:
        self.one_step, self.num_actions, self.value, self.data = step, num_actions, value, data

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        following = torch.zeros_like(state)
        rows = zip(state.numpy(), action.tolist(), following.numpy(), strict=True)
        outcomes = torch.tensor([self.one_step(self.data, *row) for row in rows], dtype=torch.float64).reshape(-1, 2)
        return outcomes[:, 0], following, outcomes[:, 1] > 0

    def evaluate(self, state: Tensor) -> Evaluation:
        """Values of ``state [M, S]``, for searches side by side."""
        values = [0.0 if self.value is None else self.value(self.data, row) for row in state.numpy()]
        return Evaluation(torch.tensor(values, dtype=torch.float64))

    def scalar(self, evaluate: Evaluate) -> Scalar | None:
        """For searches tree by tree, if states are valued by ``value``: always, unless ``evaluate`` is another."""
        if evaluate is not zero_evaluation and evaluate != self.evaluate:
            return None
        step, leaf = _by_rows(self.one_step, self.value)
        return Scalar(step, leaf, self.data, compiles=True, states=_rows)


@cache
def _by_rows(step: Callable[..., Any], value: Callable[..., float] | None) -> tuple[Callable[..., Any], ...]:
    """The kernel's step and leaf, of functions of one state."""
    try:
        import numba

        compiled: Any = [f if f is None or hasattr(f, "py_func") else numba.njit(f) for f in (step, value)]
        step, value = compiled
    except ImportError:
        pass

    def one_step(data: Any, states: Any, at: int, action: int, node: int) -> tuple[float, bool]:
        return step(data, states[at], action, states[node])

    def leaf(data: Any, states: Any, node: int, q: Any, prior: Any) -> float:
        return 0.0 if value is None else value(data, states[node])

    return one_step, leaf


def _rows(root: Any, count: int) -> Any:
    return root.expand(count, -1).clone().numpy()


class PythonModel:
    r"""A deterministic model as a Python function of one state, any object: ``planner(model, [state])``.

    Args:
        step: ``step(state, action)`` gives reward, next state and terminated.
        num_actions: A.
        value: ``value(state)``, what a new leaf is worth, in reward units; None is 0.

    A new leaf passes :math:`r + \gamma v` on, of ``[B]`` states given. Source: ours.

    Example:
        >>> from torchrl_reg.planning import UCT
        >>> walk = lambda at, action: (float(at == 2 and action), at + 2 * action - 1, at in (-2, 2))
        >>> UCT(num_simulations=200, gamma=0.9)(PythonModel(walk, 2), [0]).action.tolist()
        [1]
    """

    stochastic, num_outcomes = False, 1

    def __init__(
        self, step: Callable[[Any, int], Any], num_actions: int, *, value: Callable[[Any], float] | None = None
    ) -> None:
        self.one_step, self.num_actions, self.value = step, num_actions, value

    def scalar(self, evaluate: Evaluate) -> Scalar:
        """For searches tree by tree."""
        one_step, value = self.one_step, self.value

        def step(data: Any, states: list[Any], at: int, action: int, node: int) -> tuple[float, bool]:
            reward, states[node], ended = one_step(states[at], action)
            return reward, ended

        leaf = (lambda *_: 0.0) if value is None else (lambda data, states, node, q, prior: value(states[node]))
        return Scalar(step, leaf)
