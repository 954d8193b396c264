"""Planners with a regularizer of a user's own: no more than ``forward``."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_reg.planning import E2W, MENTS, RENTS, TENTS, Planner, QEvaluation, SyntheticTrees, TabularModel
from torchrl_reg.regularizers import Entropy, Regularized, Regularizer, check_regularizer
from torchrl_reg.tabular import chain

TAU = 0.5


class Mine(Regularizer):
    """Base of the three below, which say only what pi is: everything else follows from Omega(pi)."""

    def solved(self, q: Tensor, pi: Tensor, gradient: Tensor, cost: Tensor, mask: Tensor | None) -> Regularized:
        tau_log_pi = gradient - ((pi * gradient).sum(-1, keepdim=True) - cost.unsqueeze(-1))
        value = (pi * torch.where(pi > 0, q, 0.0)).sum(-1) - cost
        return Regularized(pi, cost, value, tau_log_pi, torch.where(pi > 0, tau_log_pi, 0.0))


class MyEntropy(Mine):
    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = q if mask is None else q.masked_fill(~mask, -math.inf)
        pi = (q / TAU).softmax(-1)
        log_pi = pi.clamp(min=1e-300).log()
        return self.solved(q, pi, TAU * (log_pi + 1), TAU * (pi * log_pi).sum(-1), mask)


class MyKL(Mine):
    def forward(self, q: Tensor, *, mask: Tensor | None = None, log_prior: Tensor | None = None) -> Regularized:
        q = q if mask is None else q.masked_fill(~mask, -math.inf)
        rho = torch.full_like(q, -math.log(q.shape[-1])) if log_prior is None else log_prior
        pi = (q / TAU + rho).softmax(-1)
        ratio = pi.clamp(min=1e-300).log() - rho
        return self.solved(q, pi, TAU * (ratio + 1), TAU * (pi * ratio).sum(-1), mask)


class MySparsemax(Mine):
    """By bisection for the threshold, and not by sorting."""

    def forward(self, q: Tensor, *, mask: Tensor | None = None) -> Regularized:
        q = q if mask is None else q.masked_fill(~mask, -math.inf)
        high = q.amax(-1, keepdim=True) / TAU
        low = high - 1
        for _ in range(80):
            middle = (low + high) / 2
            above = (q / TAU - middle).clamp(min=0).sum(-1, keepdim=True) >= 1
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        pi = (q / TAU - low).clamp(min=0)
        pi = pi / pi.sum(-1, keepdim=True)
        return self.solved(q, pi, TAU * pi, TAU / 2 * (pi.square().sum(-1) - 1), mask)


SEARCH: dict[str, Any] = {"num_simulations": 60, "gamma": 0.9}
SAME = {
    "ments": (MyEntropy, {}, MENTS),
    "rents": (MyKL, {"parent_prior": True}, RENTS),
    "tents": (MySparsemax, {}, TENTS),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_a_regularizer_of_ones_own_grows_the_same_tree(name: str, stochastic: bool, known: bool) -> None:
    own, options, named = SAME[name]
    uniform = torch.rand(3, 60, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    evaluate = QEvaluation(lambda state: torch.sin(torch.stack((state, 2 * state), -1).double()), Entropy(TAU))
    trees = []
    for planner in (
        Planner(E2W(0.3), own(), **options, **SEARCH),
        named(tau=TAU, epsilon=0.3, **SEARCH),
    ):
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


def test_the_regularizer_of_the_guide_is_searched_with() -> None:
    """tests/recipes/own_regularizer.py: a covered tree has the exact values, and E2W tries every action of its root."""
    file = Path(__file__).parents[1] / "recipes" / "own_regularizer.py"
    spec = importlib.util.spec_from_file_location("guide_regularizer", file)
    assert spec is not None and spec.loader is not None
    guide = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guide)
    regularizer, trees = guide.LogBarrier(tau=0.1), SyntheticTrees(branching=3, depth=2, num_trees=4, seed=1)
    search = Planner(E2W(2.0), regularizer, num_simulations=150, gamma=0.9)
    found = search(trees, trees.roots(), generator=torch.Generator().manual_seed(0))
    assert found.tree.num_nodes.tolist() == [13] * 4 and (found.pi > 0).all()
    torch.testing.assert_close(found.q, trees.root_q(regularizer, gamma=0.9), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.value, trees.root_value(regularizer, gamma=0.9), rtol=0, atol=1e-10)


@pytest.mark.parametrize("own", [MyEntropy, MyKL, MySparsemax])
def test_they_are_regularizers(own: type[Mine]) -> None:
    check_regularizer(own(), tolerance=1e-7)


class Follows:
    """A rule of one's own that needs a policy says so."""

    follows_policy = True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((E2W(), None, False), "regularizer must be given with E2W, which follows its policy, got None"),
        ((Follows(), None, False), "regularizer must be given with Follows, which follows its policy, got None"),
        ((E2W(), torch.nn.Linear(1, 1), False), "regularizer must be a Regularizer or None, got Linear"),
        ((E2W(), MyEntropy(), True), "regularizer must take a log_prior, for parent_prior=True, got MyEntropy"),
    ],
)
def test_what_cannot_be_searched_with_is_refused_at_once(arguments: Any, message: str) -> None:
    select, regularizer, parent_prior = arguments
    with pytest.raises(ValueError, match=message):
        Planner(select, regularizer, num_simulations=3, parent_prior=parent_prior)
