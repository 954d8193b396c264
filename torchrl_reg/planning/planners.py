"""The named searches: UCT, PUCT, MENTS, RENTS and TENTS, each a rule of selection and a backup.

Shapes: ``B`` states, ``A`` actions, ``*S`` one state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrl_reg.planning.scalar_search import scalar_tree
from torchrl_reg.planning.search import (
    E2W,
    UCB1,
    AverageReturns,
    Backup,
    PUCTRule,
    RegularizedBackup,
    Select,
    check_search,
    mcts,
)
from torchrl_reg.planning.tree import Model, Tree
from torchrl_reg.regularizers import Entropy, PriorKL, Regularizer, Tsallis

Choose = Literal["q", "visits"]


@dataclass(frozen=True)
class SearchResult:
    """The findings of a search at its roots; values are in reward units.

    Args:
        action: the action to take ``[B]``, int64.
        value: root values ``[B]``: regularized, or the mean return.
        q: action values of the root ``[B, A]``, ``-inf`` where untried and not evaluated.
        pi: policy of the root ``[B, A]``: the regularizer's, or the share of the visits.
        visits: how often each action of the root was taken ``[B, A]``.
        tree: the trees.
    """

    action: Tensor
    value: Tensor
    q: Tensor
    pi: Tensor
    visits: Tensor
    tree: Tree


class Planner(nn.Module):
    r"""Searches from states ``[B, *S]`` and chooses an action for each; values are in reward units.

    Args:
        select: chooses actions at nodes, see :mod:`torchrl_reg.planning.search`.
        regularizer: any :class:`torchrl_reg.regularizers.Regularizer`, also a custom one with no more than ``forward``:
            its value is that of a node, its policy the one E2W follows; None averages returns.
        num_simulations: simulations of one search >= 1.
        gamma: discount in [0, 1].
        max_depth: maximal number of actions in one simulation; None is no limit.
        choose: the action with the largest ``"q"``, or the most ``"visits"`` and of these the largest ``q``.
        parent_prior: see :class:`torchrl_reg.planning.RegularizedBackup`.
        dtype: of the statistics.

    Raises:
        ValueError: if ``num_simulations`` or ``max_depth`` is below 1, ``gamma`` outside [0, 1], ``choose`` unknown, or
            ``select`` needs a regularizer and there is none, or it takes no ``log_prior`` and ``parent_prior`` is set.

    Example:
        >>> from torchrl_reg.planning import E2W, SyntheticTrees
        >>> from torchrl_reg.regularizers import HardMax
        >>> trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=0)
        >>> found = Planner(E2W(0.1), HardMax(), num_simulations=200)(trees, trees.roots())
        >>> bool((found.value == found.q.amax(-1)).all())
        True
    """

    def __init__(
        self,
        select: Select,
        regularizer: Regularizer | None = None,
        *,
        num_simulations: int,
        gamma: float = 1.0,
        max_depth: int | None = None,
        choose: Choose = "q",
        parent_prior: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if choose not in ("q", "visits"):
            raise ValueError(f"choose must be 'q' or 'visits', got {choose!r}.")
        if regularizer is None and getattr(select, "follows_policy", False):
            rule = type(select).__name__
            raise ValueError(f"regularizer must be given with {rule}, which follows its policy, got None.")
        _check_regularizer(regularizer, parent_prior)
        check_search(num_simulations, max_depth, gamma)
        self.select, self.regularizer = select, regularizer
        self.num_simulations, self.gamma, self.max_depth = num_simulations, gamma, max_depth
        self.choose, self.parent_prior, self.dtype = choose, parent_prior, dtype

    def forward(
        self, model: Model, state: Tensor, *, watch: Callable[[int, SearchResult], object] | None = None, **search: Any
    ) -> SearchResult:
        """Searches from ``state [B, *S]``.

        Args:
            model, state, watch: as of :func:`torchrl_reg.planning.mcts`, but ``watch`` is called with the results.
            search: ``evaluate``, ``generator`` and ``uniform`` of :func:`torchrl_reg.planning.mcts`.

        One tree or few, and many of a model that numba compiles, are searched one by one: the same trees, much sooner.
        """
        grown = scalar_tree(self, model, state, **search) if watch is None else None
        if grown is not None:
            return self.result(grown)
        backup: Backup = AverageReturns()
        if self.regularizer is not None:
            backup = RegularizedBackup(self.regularizer, parent_prior=self.parent_prior)
        tree = mcts(
            model,
            state,
            num_simulations=self.num_simulations,
            select=self.select,
            backup=backup,
            gamma=self.gamma,
            max_depth=self.max_depth,
            watch=None if watch is None else lambda count, tree: watch(count, self.result(tree)),
            dtype=self.dtype,
            **search,
        )
        return self.result(tree)

    def result(self, tree: Tree) -> SearchResult:
        """The results at the roots of the trees."""
        visits, q = tree.visits[:, 0], tree.q[:, 0]
        if not tree.known:
            q = q.masked_fill(visits == 0, -math.inf)
        best = q if self.choose == "q" else q.masked_fill(visits < visits.amax(-1, keepdim=True), -math.inf)
        pi = visits / visits.sum(-1, keepdim=True) if tree.pi is None else tree.pi[:, 0]
        return SearchResult(best.argmax(-1), tree.value[:, 0], q, pi, visits, tree)


def _check_regularizer(regularizer: Any, parent_prior: bool) -> None:
    if regularizer is not None and not isinstance(regularizer, Regularizer):
        raise ValueError(f"regularizer must be a Regularizer or None, got {type(regularizer).__name__}.")
    if parent_prior and (regularizer is None or "log_prior" not in signature(regularizer.forward).parameters):
        name = type(regularizer).__name__
        raise ValueError(f"regularizer must take a log_prior, for parent_prior=True, got {name}, which takes none.")


class UCT(Planner):
    r"""UCT: UCB1, :math:`q(a) + c \sqrt{\ln N / n(a)}`, and averaged returns; takes the action tried most often.

    From states ``[B, *S]``, as every planner.

    Source: Kocsis and Szepesvari 2006.

    Args:
        c: width of the bonus >= 0, in reward units.
        num_simulations, gamma, max_depth, choose, dtype: see :class:`Planner`.

    Raises:
        ValueError: as :class:`Planner`, or ``c`` is negative or not finite.

    Example:
        >>> from torchrl_reg.planning import TabularModel
        >>> from torchrl_reg.tabular import chain
        >>> search = UCT(num_simulations=100, gamma=0.9)
        >>> search(TabularModel(chain(4, gamma=0.9)), torch.tensor([1, 2])).action.tolist()
        [1, 1]
    """

    def __init__(
        self, *, num_simulations: int, c: float = math.sqrt(2), choose: Choose = "visits", **rest: Any
    ) -> None:
        super().__init__(UCB1(c), num_simulations=num_simulations, choose=choose, **rest)


class PUCT(Planner):
    r"""PUCT: :math:`q(a) + c \, \rho(a) \sqrt{N + 1} / (n(a) + 1)`, the evaluation's prior ``rho``, averaged returns.

    From states ``[B, *S]``; takes the action tried most often.

    Source: Silver et al. 2017 (AlphaGo Zero); ``c`` from the code of Dam et al. 2021.

    Args and errors are those of :class:`UCT`; ``c``, in reward units, weighs the bonus, which vanishes as
    ``1 / n(a)``.

    Example:
        >>> from torchrl_reg.planning import Evaluation, SyntheticTrees
        >>> trees, prior = SyntheticTrees(branching=3, depth=1, seed=0), torch.tensor([[0.0, 1.0, 0.0]])
        >>> found = PUCT(num_simulations=9, c=9.0)(
        ...     trees, trees.roots(), evaluate=lambda state: Evaluation(torch.zeros(len(state)), prior=prior)
        ... )
        >>> found.visits.tolist()
        [[0.0, 9.0, 0.0]]
    """

    def __init__(self, *, num_simulations: int, c: float = 1.5, choose: Choose = "visits", **rest: Any) -> None:
        super().__init__(PUCTRule(c), num_simulations=num_simulations, choose=choose, **rest)


class MENTS(Planner):
    r"""MENTS: E2W and the soft value :math:`\tau \ln \sum_a \exp(q(a) / \tau)`; takes the largest soft action value.

    From states ``[B, *S]``. The soft-optimal action need not be the best one: many good siblings outweigh one that is a
    little better, so choose ``tau`` well below the differences that matter.

    Source: Xiao et al. 2019, "Maximum Entropy Monte-Carlo Planning".

    Args:
        tau: temperature > 0, in reward units.
        epsilon: exploration > 0, without unit; see :class:`E2W`.
        num_simulations, gamma, max_depth, choose, dtype: see :class:`Planner`.

    Raises:
        ValueError: as :class:`Planner`, or ``tau`` or ``epsilon`` is not a finite number > 0.

    Example:
        >>> from torchrl_reg.planning import SyntheticTrees
        >>> trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=0)
        >>> found = MENTS(tau=0.1, epsilon=0.1, num_simulations=200)(trees, trees.roots())
        >>> found.q.shape, bool((found.value > found.q.amax(-1)).all())
        (torch.Size([4, 3]), True)
    """

    def __init__(self, *, num_simulations: int, tau: float = 0.1, epsilon: float = 0.1, **rest: Any) -> None:
        super().__init__(E2W(epsilon), Entropy(tau), num_simulations=num_simulations, **rest)


class RENTS(Planner):
    r"""RENTS: E2W and :math:`\tau \ln \sum_a \rho(a) \exp(q(a) / \tau)` with the parent's policy as prior :math:`\rho`.

    From states ``[B, *S]``.

    Source: Dam et al. 2021, "Convex Regularization in Monte-Carlo Tree Search"; which policy of the parent is meant,
    and what holds before it has one, is ours, see :class:`torchrl_reg.planning.RegularizedBackup`.

    Args and errors are those of :class:`MENTS`, ``tau`` in reward units.

    Example:
        >>> from torchrl_reg.planning import SyntheticTrees
        >>> trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=0)
        >>> found = RENTS(tau=0.1, epsilon=0.1, num_simulations=200)(trees, trees.roots())
        >>> bool((found.value <= found.q.amax(-1)).all())
        True
    """

    def __init__(self, *, num_simulations: int, tau: float = 0.1, epsilon: float = 0.1, **rest: Any) -> None:
        super().__init__(E2W(epsilon), PriorKL(tau), num_simulations=num_simulations, parent_prior=True, **rest)


class TENTS(Planner):
    r"""TENTS: E2W with the sparsemax policy, and the Tsallis-regularized value; takes the largest action value.

    From states ``[B, *S]``.

    Source: Dam et al. 2021, "Convex Regularization in Monte-Carlo Tree Search".

    Args and errors are those of :class:`MENTS`; ``tau``, in reward units, in the half convention,
    :math:`\Omega = \tau / 2 (\sum_a \pi(a)^2 - 1)`.

    Example:
        >>> from torchrl_reg.planning import SyntheticTrees
        >>> trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=0)
        >>> found = TENTS(tau=0.1, epsilon=0.1, num_simulations=60)(trees, trees.roots())
        >>> bool((found.value >= found.q.amax(-1)).all())
        True
    """

    def __init__(self, *, num_simulations: int, tau: float = 0.1, epsilon: float = 0.1, **rest: Any) -> None:
        super().__init__(E2W(epsilon), Tsallis(tau), num_simulations=num_simulations, **rest)
