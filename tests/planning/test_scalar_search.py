"""The scalar search grows the same trees as the batched search, bit for bit, in Python and compiled."""

from __future__ import annotations

import inspect
import itertools
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from torchrl_reg.planning import (
    E2W,
    MENTS,
    PUCT,
    RENTS,
    TENTS,
    UCB1,
    UCT,
    CompiledModel,
    Evaluation,
    Planner,
    PythonModel,
    SearchResult,
    SyntheticTrees,
    Tables,
    TabularModel,
    planners,
    scalar_search,
    search_tables,
)
from torchrl_reg.planning.scalar_models import _table_leaf, _table_step
from torchrl_reg.planning.scalar_search import scalar_tree
from torchrl_reg.regularizers import Boltzmann, Entropy, HardMax, PriorKL, Tsallis
from torchrl_reg.tabular import TabularMDP, gridworld, random_mdp

DRAWS = torch.rand(3, 60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SEARCH: dict[str, Any] = {"num_simulations": 60, "gamma": 0.9}
PLANNERS = [
    UCT(c=0.7, **SEARCH),
    PUCT(c=0.7, **SEARCH),
    MENTS(tau=0.3, epsilon=0.4, **SEARCH),
    RENTS(tau=0.3, epsilon=0.4, **SEARCH),
    TENTS(tau=0.3, epsilon=0.4, **SEARCH),
    Planner(E2W(0.4), HardMax(), max_depth=2, **SEARCH),
    Planner(UCB1(0.7), PriorKL(0.3, prior=[0.1, 0.2, 0.3, 0.4]), **SEARCH),
]
each_planner = pytest.mark.parametrize("planner", PLANNERS, ids=lambda p: f"{type(p).__name__}-{p.max_depth}")


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``side_by_side(planner, ...)`` searches without the plain loops."""

    def search(planner: Planner, *args: Any, **kwargs: Any) -> SearchResult:
        with monkeypatch.context() as patch:
            patch.setattr(planners, "scalar_tree", lambda *_, **__: None)
            return planner(*args, **kwargs)

    return search


@pytest.fixture(params=["python", "compiled"])
def scalar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``scalar(planner, ...)`` searches by plain loops, and by nothing else."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setattr(scalar_search, "_COMPILING_PAYS", 0 if request.param == "compiled" else 10**9)

    def search(planner: Planner, *args: Any, **kwargs: Any) -> SearchResult:
        tree = scalar_tree(planner, *args, **kwargs)
        assert tree is not None
        return planner.result(tree)

    return search


def same(found: SearchResult, expected: SearchResult) -> None:
    exist = torch.zeros(expected.tree.value.shape, dtype=torch.bool)
    exist[:, 0] = True
    for tree, child in zip(exist, expected.tree.children.flatten(1), strict=True):
        tree[child[child >= 0]] = True
    assert torch.allclose(found.tree.state[exist].double(), expected.tree.state[exist].double(), rtol=0, atol=1e-12)
    for name in ("children", "visits", "reward", "q", "value", "passed", "alive", "pi", "prior"):
        one, two = getattr(found.tree, name), getattr(expected.tree, name)
        assert (one is None) == (two is None), name
        if one is not None:
            assert torch.allclose(one, two, rtol=0, atol=1e-12), name
    assert torch.equal(found.action, expected.action)


@each_planner
def test_synthetic_trees(planner: Planner, scalar: Any, side_by_side: Any) -> None:
    trees = SyntheticTrees(branching=4, depth=3, num_trees=3, seed=0)
    same(
        scalar(planner, trees, trees.roots(), uniform=DRAWS), side_by_side(planner, trees, trees.roots(), uniform=DRAWS)
    )


@each_planner
@pytest.mark.parametrize(
    "mdp",
    [gridworld(["..#.", "....", ".#.G"], gamma=0.5), random_mdp(12, 4, gamma=0.9, seed=2, deterministic=True)],
    ids=["gridworld", "garnet"],
)
def test_tables_with_values_and_priors(planner: Planner, mdp: TabularMDP, scalar: Any, side_by_side: Any) -> None:
    roots, draw = torch.tensor([0, 6, 2]), torch.Generator().manual_seed(1)
    q = torch.randn(mdp.num_states, 4, dtype=torch.float64, generator=draw)
    prior = q.flip(0).softmax(-1)
    plain = TabularModel(mdp)
    same(scalar(planner, plain, roots, uniform=DRAWS), side_by_side(planner, plain, roots, uniform=DRAWS))
    for given in ({}, {"q": q}, {"prior": prior}, {"q": q, "prior": prior}):
        tables = Tables(mdp.P.argmax(-1), mdp.r, mdp.terminal, q.amax(-1), **given)
        how = {"evaluate": tables.evaluate, "uniform": DRAWS}
        same(scalar(planner, tables, roots, **how), side_by_side(planner, tables, roots, **how))


@each_planner
def test_one_tree_of_any_deterministic_model_draws_the_same_numbers(planner: Planner, side_by_side: Any) -> None:
    """A model without declared properties: vector states, evaluated leaves, single random numbers."""

    class Walk:
        num_actions, stochastic, num_outcomes = 4, False, 1

        def step(self, state: torch.Tensor, action: torch.Tensor) -> Any:
            moved = state + torch.stack(((action % 2) * 2 - 1, action // 2 * 2 - 1), -1)
            return moved[:, 0].double() / 7, moved, (moved.abs() > 3).any(-1)

    def evaluate(state: torch.Tensor) -> Evaluation:
        q = torch.sin(state.double().sum(-1, keepdim=True) + torch.arange(4))
        return Evaluation(q.mean(-1), q if known else None, q.softmax(-1) if known else None)

    for known in (False, True):  # noqa: B007 (evaluate reads it)
        how = {"evaluate": evaluate, "state": torch.zeros(1, 2, dtype=torch.int64)}
        tree = scalar_tree(planner, Walk(), generator=torch.Generator().manual_seed(3), **how)
        other = side_by_side(planner, Walk(), generator=torch.Generator().manual_seed(3), **how)
        same(planner.result(tree), other)


def test_numbers_drawn_ahead_are_given_back(side_by_side: Any) -> None:
    trees = SyntheticTrees(branching=4, depth=3, seed=0)
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    same(
        PLANNERS[2](trees, trees.roots(), generator=one), side_by_side(PLANNERS[2], trees, trees.roots(), generator=two)
    )
    assert torch.equal(one.get_state(), two.get_state())


def fall(data: Any, state: Any, action: int, following: Any) -> tuple[float, bool]:
    following[0], following[1] = state[0] + action - 1.5, state[1] * 0.5 + action
    return following[1] * 0.1, abs(following[0]) > data[0]


def height(data: Any, state: Any) -> float:
    return state[0] * 0.25


@each_planner
def test_functions_compiled_or_not(planner: Planner, scalar: Any, side_by_side: Any) -> None:
    model, roots = CompiledModel(fall, 4, value=height, data=(3.0,)), torch.zeros(3, 2, dtype=torch.float64)
    expected = side_by_side(planner, model, roots, evaluate=model.evaluate, uniform=DRAWS)
    same(scalar(planner, model, roots, uniform=DRAWS), expected)

    def step(state: tuple[float, float], action: int) -> Any:
        following = (state[0] + action - 1.5, state[1] * 0.5 + action)
        return following[1] * 0.1, following, abs(following[0]) > 3

    found = planner(PythonModel(step, 4, value=lambda s: s[0] * 0.25), [(0.0, 0.0)] * 3, uniform=DRAWS)
    assert torch.equal(found.visits, expected.visits) and torch.allclose(found.q, expected.q)


def test_large_searches_are_compiled_and_repeat_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(scalar_search, "_COMPILING_PAYS", 100)
    monkeypatch.setattr(scalar_search, "_python_search", None)
    trees = SyntheticTrees(branching=3, depth=3, num_trees=40, seed=0)
    planner = MENTS(num_simulations=2_000, tau=0.3, epsilon=0.5)
    one, two, other = (planner(trees, trees.roots(), generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(one.q, two.q) and not torch.equal(one.visits, other.visits)
    exact = trees.root_q(Entropy(0.3))
    assert (one.q - exact).abs().max() < 1e-9 and (one.visits[0] != one.visits[1]).any()


def test_64_trees_of_200_simulations_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr(scalar_search, "_compiled_search", compiled := Mock())
    trees = SyntheticTrees(branching=8, depth=4, num_trees=64, seed=0)
    for simulations, calls in ((100, 0), (200, 1)):
        UCT(num_simulations=simulations)(trees, trees.roots())
        assert compiled.call_count == calls


def test_compiled_code_is_kept_on_disk_under_the_digest_of_its_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytest.importorskip("numba").core.config, "CACHE_DIR", str(tmp_path))
    trees = SyntheticTrees(branching=2, depth=2, seed=0)
    planner, kernels, found = UCT(num_simulations=9), [], []
    for _ in range(2):  # the second compiles nothing, as in another process
        scalar_search._compiled.cache_clear()
        found.append(search_tables(planner, trees.tables(), trees.roots()))
        kernels.append(scalar_search._compiled(_table_step, _table_leaf))
    assert [sum(kernel.stats.cache_hits.values()) for kernel in kernels] == [0, 1]
    assert torch.equal(found[0].visits, found[1].visits)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "# new")
    scalar_search._compiled.cache_clear()
    assert scalar_search._compiled(_table_step, _table_leaf).__name__ != kernels[0].__name__
    scalar_search._compiled.cache_clear()


def test_what_says_nothing_is_searched_side_by_side() -> None:
    class Own(Entropy):
        def forward(self, q: Any, **rest: Any) -> Any:
            return super().forward(q * 0.5, **rest)

    quiet, noisy = (SyntheticTrees(branching=2, depth=2, noise=noise, seed=0) for noise in (0.0, 0.5))
    for planner in (
        Planner(E2W(0.1), Own(0.1), **SEARCH),
        Planner(E2W(0.1), Boltzmann(0.1), **SEARCH),
        Planner(E2W(0.1), Tsallis(0.1, q=1.5), **SEARCH),
        Planner(E2W(0.1), PriorKL(0.1, prior=[1.0, 0.0]), **SEARCH),
        UCT(**SEARCH, dtype=torch.float32),
        Planner(lambda nodes, uniform: nodes.q.argmax(-1), **SEARCH),
    ):
        assert scalar_tree(planner, quiet, quiet.roots()) is None
    assert scalar_tree(UCT(**SEARCH), noisy, noisy.roots()) is None

    class Reversed(SyntheticTrees):
        def step(self, state: Any, action: Any) -> Any:
            return super().step(state, 1 - action)

    turned, replaced = (kind(branching=2, depth=2, num_trees=2, seed=0) for kind in (Reversed, SyntheticTrees))
    assert scalar_tree(UCT(**SEARCH), replaced, replaced.roots()) is not None
    replaced.step = lambda *_: (torch.zeros(2).double(), torch.zeros(2).long(), torch.ones(2).bool())  # type: ignore
    for planner, model in itertools.product((UCT(**SEARCH), MENTS(**SEARCH)), (turned, replaced)):
        assert scalar_tree(planner, model, model.roots()) is None
    assert scalar_tree(UCT(**SEARCH), quiet, quiet.roots()) is not None


def test_small_trees() -> None:
    """One simulation, one action."""
    for planner in (UCT(num_simulations=1), MENTS(num_simulations=1)):
        trees = SyntheticTrees(branching=1, depth=2, seed=0)
        found = planner(trees, trees.roots())
        assert found.action.tolist() == [0] and found.visits.tolist() == [[1.0]]
    walk = PythonModel(lambda s, a: (1.0, s, True), 2)
    found = UCT(num_simulations=3)(walk, ["here", "there"])
    assert found.visits.sum(-1).tolist() == [3.0, 3.0] and found.value.tolist() == [1.0, 1.0]


def test_an_error_of_the_model_is_not_hidden() -> None:
    def step(state: Any, action: int) -> Any:
        raise RuntimeError("out of fuel")

    with pytest.raises(RuntimeError, match="out of fuel"):
        UCT(num_simulations=3)(PythonModel(step, 2), [0])


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = SyntheticTrees(branching=2, depth=2, seed=0)
    tables, small = trees.tables(), {"num_simulations": 3}
    with pytest.raises(
        ValueError, match=r"planner must have a rule and a regularizer of this package, in float64, got"
    ):
        search_tables(UCT(**small, dtype=torch.float32), tables, trees.roots())
    wrong = Tables(tables.successor, tables.reward[:, :1], tables.terminal, tables.value)
    with pytest.raises(ValueError, match=r"tables must be \[S, A\], \[S, A\], \[S\] and \[S\], got \[7, 2\]"):
        search_tables(UCT(**small), wrong, trees.roots())
    with pytest.raises(ValueError, match=r"state must hold a state for each tree"):
        UCT(**small)(trees, trees.roots()[:0])
    scalar_search._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ValueError, match="search_tables needs numba, got none"):
        search_tables(UCT(**small), tables, trees.roots())
