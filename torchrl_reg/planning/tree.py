"""A batch of trees in tensors: their nodes, what is passed into a search (selection, backup, evaluation)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Model(Protocol):
    """A model to plan in: many states ``[M, *S]`` at once, each a row of one tensor; rewards are in reward units.

    A state may be anything that a tensor row can name: an index, a vector, or the number of a snapshot that the model
    keeps (:class:`torchrl_reg.planning.EmulatorModel`).

    Attributes:
        num_actions: number of actions A, all legal in every state.
        stochastic: whether a step from the same state with the same action may differ; a search then steps through
            the model at every node that it passes, and else once a simulation.
        num_outcomes: outcomes K that a search keeps apart for each action, see :func:`torchrl_reg.planning.mcts`.
    """

    num_actions: int
    stochastic: bool
    num_outcomes: int

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward ``[M]``, next state ``[M, *S]`` and terminated ``[M]``, bool; ``state [M, *S]``, ``action [M]``."""
        ...


@contextmanager
def forgetting(model: Model) -> Iterator[None]:
    """Releases the states that ``model`` comes to inside, if it keeps any: if it has ``mark`` and ``release``."""
    mark = model.mark() if hasattr(model, "mark") else None
    yield
    if mark is not None:
        model.release(mark)  # type: ignore[attr-defined]


def check_minimum(minimum: int, **counts: int) -> None:
    """Raises ValueError unless all ``counts`` are at least ``minimum``."""
    for name, value in counts.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}.")


@dataclass
class Evaluation:
    """The initial estimate for new states, before any action has been tried there.

    Args:
        value: values ``[M]``, in reward units: what a new leaf passes to its ancestors.
        q: action values ``[M, A]`` that untried actions have; None leaves them out of values and policies.
        prior: probabilities of the actions ``[M, A]``; None is uniform.
    """

    value: Tensor
    q: Tensor | None = None
    prior: Tensor | None = None


Evaluate = Callable[[Tensor], Evaluation]


@dataclass
class Tree:
    """``B`` trees of up to ``N`` nodes; node 0 is the root and node ``i`` the one that simulation ``i`` added, if any.

    Args:
        state: states ``[B, N, *S]``; those of nodes that do not exist mean nothing.
        children: node that each outcome of an action leads to, -1 where there is none ``[B, N, A, K]``, int64.
        visits: how often each action was taken ``[B, N, A]``, a whole number in the dtype of the values.
        reward: mean reward of each action ``[B, N, A]``.
        q: action values ``[B, N, A]``, 0 where untried unless the evaluation gives some.
        value: node values ``[B, N]``.
        passed: simulations that came by the node ``[B, N]``.
        alive: those of them for which the episode had not terminated there ``[B, N]``.
        prior: probabilities of the actions from the evaluation ``[B, N, A]``; None is uniform.
        pi: policy of the regularizer at its last backup, uniform before ``[B, N, A]``; None where returns are averaged.
        known: whether untried actions have action values, from the evaluation.
    """

    state: Tensor
    children: Tensor
    visits: Tensor
    reward: Tensor
    q: Tensor
    value: Tensor
    passed: Tensor
    alive: Tensor
    prior: Tensor | None
    pi: Tensor | None
    known: bool

    @property
    def num_nodes(self) -> Tensor:
        """Nodes that exist in each tree ``[B]``, int64."""
        return 1 + (self.children >= 0).flatten(1).sum(-1)

    def bytes_per_node(self) -> int:
        """Memory of one node, the model's state included.

        In float64 with ``A`` actions and ``K = 1`` that is ``32 A + 24`` (``8 A`` more with policies and ``8 A`` more
        with priors) and the state.
        """
        return sum(x[0, 0].numel() * x.element_size() for x in vars(self).values() if isinstance(x, Tensor))

    def flat(self) -> Tree:
        """The same memory with trees and nodes in one dimension: node ``i`` of tree ``b`` is row ``b N + i``."""
        arrays: dict[str, Any] = {name: x.flatten(0, 1) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Tree(**vars(self) | arrays)

    def enter(self, rows: Tensor, evaluation: Evaluation) -> None:
        """Writes the evaluation of new nodes, ``rows`` of a flat tree."""
        self.value[rows] = evaluation.value.to(self.value)
        for here, given in ((self.q, evaluation.q), (self.prior, evaluation.prior)):
            if here is not None and given is not None:
                here[rows] = given.to(here)


def allocate(
    state: Tensor, size: tuple[int, int, int], evaluation: Evaluation, *, dtype: torch.dtype, with_policy: bool
) -> Tree:
    """Trees of ``size = (N, A, K)`` whose roots are in ``state [B, *S]`` with their ``evaluation``, nothing tried."""
    num_nodes, num_actions, num_outcomes = size

    def full(value: float, *shape: int) -> Tensor:
        array = torch.zeros((len(state), num_nodes, *shape), dtype=dtype, device=state.device)
        return array.fill_(value) if value else array  # zeros cost nothing until they are touched

    tree = Tree(
        state=state.new_zeros(len(state), num_nodes, *state.shape[1:]),
        children=torch.full((len(state), *size), -1, device=state.device),
        visits=full(0, num_actions),
        reward=full(0, num_actions),
        q=full(0, num_actions),
        value=full(0),
        passed=full(0),
        alive=full(0),
        prior=None if evaluation.prior is None else full(1 / num_actions, num_actions),
        pi=full(1 / num_actions, num_actions) if with_policy else None,
        known=evaluation.q is not None,
    )
    tree.state[:, 0] = state
    tree.flat().enter(torch.arange(len(state), device=state.device) * num_nodes, evaluation)
    return tree


class Nodes:
    """One node of each tree, ``rows [B]`` of a flat tree, as a selection rule sees it.

    Attributes ``q``, ``visits`` and ``pi`` are ``[B, A]`` copies made when the simulation passed, ``value [B]`` and
    ``prior [B, A]`` are read when asked for, in reward units; ``pi`` and ``prior`` may be None, see :class:`Tree`.
    """

    def __init__(self, flat: Tree, rows: Tensor) -> None:
        self._flat, self.rows = flat, rows
        self.q = flat.q.index_select(0, rows)
        self.visits = flat.visits.index_select(0, rows)
        self.pi = None if flat.pi is None else flat.pi.index_select(0, rows)

    @property
    def known(self) -> bool:
        """True if untried actions have action values."""
        return self._flat.known

    @property
    def value(self) -> Tensor:
        """Values of the nodes ``[B]``, in reward units."""
        return self._flat.value.index_select(0, self.rows)

    @property
    def prior(self) -> Tensor | None:
        """Probabilities that the evaluation gave the actions ``[B, A]``; None is uniform."""
        return None if self._flat.prior is None else self._flat.prior.index_select(0, self.rows)
