"""Planners: a regularizer of a user's own with no more than ``forward``, the action taken, and what is refused.

RENTS with an evaluation: a parent whose untried actions have values already is a prior for its child.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchrl_reg.planning import (
    E2W,
    MENTS,
    PUCT,
    RENTS,
    TENTS,
    UCT,
    Evaluation,
    Planner,
    QEvaluation,
    SyntheticTrees,
    TabularModel,
    mcts,
)
from torchrl_reg.planning.search import RegularizedBackup
from torchrl_reg.regularizers import Entropy, PriorKL, Regularized, Regularizer, Tsallis
from torchrl_reg.tabular import chain

TAU = 0.5


class Mine(Regularizer):
    """Nothing but ``forward``, here another's."""

    def __init__(self, inner: Regularizer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        return self.inner(q, mask=mask)


class MineWithPrior(Mine):
    def forward(self, q: Tensor, *, mask: Tensor | None = None, log_prior: Tensor | None = None) -> Regularized:
        return self.inner(q, mask=mask, log_prior=log_prior)


SEARCH: dict[str, Any] = {"num_simulations": 40, "gamma": 0.9}
SAME = {
    "ments": (Mine(Entropy(TAU)), {}, MENTS),
    "rents": (MineWithPrior(PriorKL(TAU)), {"parent_prior": True}, RENTS),
    "tents": (Mine(Tsallis(TAU)), {}, TENTS),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_a_regularizer_of_ones_own_grows_the_same_tree(name: str, stochastic: bool, known: bool) -> None:
    own, options, named = SAME[name]
    uniform = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    evaluate = QEvaluation(lambda state: torch.sin(torch.stack((state, 2 * state), -1).double()), Entropy(TAU))
    trees = []
    for planner in (Planner(E2W(0.3), own, **options, **SEARCH), named(tau=TAU, epsilon=0.3, **SEARCH)):
        model: Any = SyntheticTrees(branching=2, depth=4, num_trees=3, seed=2)
        roots = model.roots()
        if stochastic:
            generator = torch.Generator().manual_seed(3)
            model, roots = TabularModel(chain(5, 0.9, slip=0.3), generator=generator), torch.tensor([0, 3, 1])
        more = {"evaluate": evaluate} if known else {}
        trees.append(planner(model, roots, uniform=uniform, **more).tree)
    for field in ("visits", "children", "q", "value", "pi"):
        torch.testing.assert_close(getattr(trees[0], field), getattr(trees[1], field), rtol=0, atol=1e-9)
    assert (trees[0].visits > 0).sum() > 20


def test_of_the_actions_tried_most_often_the_best_is_taken() -> None:
    trees = SyntheticTrees(branching=3, depth=1, num_trees=9, seed=0)
    found = UCT(num_simulations=3)(trees, trees.roots())
    assert (found.visits == 1).all() and torch.equal(found.action, found.q.argmax(-1))
    assert found.action.unique().tolist() == [0, 1, 2]
    noisy = SyntheticTrees(branching=3, depth=1, num_trees=200, noise=1.0, seed=0)
    found = UCT(num_simulations=10)(noisy, noisy.roots())
    taken = found.visits.gather(-1, found.action.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(taken, found.visits.amax(-1)) and (found.action != found.q.argmax(-1)).any()


class Follows:
    """A user's rule that needs a policy raises without one."""

    follows_policy = True


TREES = SyntheticTrees(branching=3, depth=4, seed=5)
BAD = [
    (lambda: UCT(num_simulations=0), "num_simulations must be at least 1, got 0"),
    (lambda: UCT(num_simulations=5, max_depth=0), "max_depth must be at least 1 or None, got 0"),
    (lambda: UCT(num_simulations=5, gamma=1.1), r"gamma must be in \[0, 1\], got 1.1"),
    (lambda: UCT(num_simulations=5, c=-1.0), "c must be a finite number >= 0, got -1.0"),
    (lambda: PUCT(num_simulations=5, c=math.inf), "c must be a finite number >= 0, got inf"),
    (lambda: UCT(num_simulations=5, choose="best"), "choose must be 'q' or 'visits', got 'best'"),
    (lambda: MENTS(num_simulations=5, epsilon=0.0), "epsilon must be a finite number > 0, got 0.0"),
    (lambda: MENTS(num_simulations=5, tau=0.0), "tau must be a finite number > 0"),
    (lambda: RENTS(num_simulations=5, tau=-0.1), "tau must be a finite number > 0"),
    (lambda: Planner(E2W(), num_simulations=5), "regularizer must be given with E2W, which follows its policy, got"),
    (lambda: Planner(Follows(), num_simulations=5), "regularizer must be given with Follows, which follows its poli"),
    (lambda: Planner(E2W(), nn.Linear(1, 1), num_simulations=5), "regularizer must be a Regularizer or None, got Lin"),
    (
        lambda: Planner(E2W(), Entropy(1.0), num_simulations=5, parent_prior=True),
        "regularizer must take a log_prior, for parent_prior=True, got Entropy",
    ),
    (lambda: UCT(num_simulations=5)(TREES, torch.tensor(0)), r"state must hold a state for each tree"),
    (lambda: SyntheticTrees(0, 2, seed=0), "branching must be at least 1, got 0"),
    (lambda: SyntheticTrees(2, 0, seed=0), "depth must be at least 1, got 0"),
    (lambda: SyntheticTrees(2, 2, noise=-1.0, seed=0), "noise must be a standard deviation >= 0, got -1.0"),
    (lambda: TabularModel(chain(3, 0.9), num_outcomes=0), "num_outcomes must be at least 1 or None, got 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


# -- the parent as a prior ------------------------------------------------------------------------------------------


class Line:
    """Each action leads one place further, for a reward of .5."""

    num_actions, stochastic, num_outcomes = 2, False, 1

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.full((len(state),), 0.5), state + 1, torch.zeros(len(state), dtype=torch.bool)


def always_first(nodes, draw) -> Tensor:
    return torch.zeros(len(nodes.q), dtype=torch.int64)


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_parent_with_untried_actions_is_a_prior_only_if_these_have_values(evaluated: bool) -> None:
    tau, gamma, other = 0.4, 0.9, 0.2
    q = torch.tensor([[1.0, other]]) if evaluated else None
    tree = mcts(
        Line(),
        torch.tensor([0]),
        num_simulations=2,
        select=always_first,
        backup=RegularizedBackup(RENTS(num_simulations=1, tau=tau).regularizer, parent_prior=True),
        evaluate=lambda state: Evaluation(torch.full((len(state),), 0.3), q),
        gamma=gamma,
    )
    # The first simulation gave the root its policy, the second the root's child: both took the first action once.
    q = torch.tensor([0.5 + gamma * 0.3, other], dtype=torch.float64)
    root = (q / tau).softmax(-1)
    child = (root.log() + q / tau).softmax(-1) if evaluated else torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tree.pi[0, 1], child)
    value = tau * torch.logsumexp(root.log() + q / tau, -1) if evaluated else q[0] - tau * torch.tensor(2.0).log()
    torch.testing.assert_close(tree.value[0, 1], value.double())
