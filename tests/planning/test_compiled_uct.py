"""UCT by plain scalar loops, which numba compiles, is the oracle of the search: the same trees, number by number."""

from __future__ import annotations

import sys

import pytest
import torch

from torchrl_reg.planning import MENTS, PUCT, UCT, Evaluation, SyntheticTrees, Tables, TabularModel, search_tables
from torchrl_reg.planning.compiled_uct import _compiled
from torchrl_reg.tabular import TabularMDP, gridworld, random_mdp

numba = pytest.importorskip("numba")


def same(found: object, expected: object) -> None:
    for name in ("state", "children", "visits", "reward", "q", "value", "passed", "alive"):
        one, two = getattr(found.tree, name), getattr(expected.tree, name)  # type: ignore[attr-defined]
        assert torch.allclose(one, two, atol=1e-12), name


@pytest.mark.parametrize("max_depth", [None, 2])
def test_synthetic_trees_without_their_noise(max_depth: int | None) -> None:
    noisy, quiet = (SyntheticTrees(branching=3, depth=4, num_trees=2, noise=noise, seed=0) for noise in (0.3, 0.0))
    search = UCT(num_simulations=100, c=0.7, gamma=0.9, max_depth=max_depth)
    same(search_tables(search, noisy.tables(), noisy.roots()), search(quiet, quiet.roots()))


@pytest.mark.parametrize(
    "mdp",
    [gridworld(["..#.", "....", ".#.G"], gamma=0.5), random_mdp(12, 4, gamma=0.9, seed=2, deterministic=True)],
    ids=["gridworld", "garnet"],
)
def test_an_mdp_with_values_of_leaves(mdp: TabularMDP) -> None:
    value = torch.sin(3.0 * torch.arange(mdp.num_states, dtype=torch.float64))
    tables, roots = Tables(mdp.P.argmax(-1), mdp.r, mdp.terminal, value), torch.tensor([0, 6, 2])
    search = UCT(num_simulations=60, c=1.3, gamma=0.9)
    general = search(TabularModel(mdp), roots, evaluate=lambda state: Evaluation(value[state]))
    same(search_tables(search, tables, roots), general)


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = SyntheticTrees(branching=2, depth=2, seed=0)
    tables, small = trees.tables(), {"num_simulations": 3}
    for planner in (MENTS(**small), PUCT(**small), UCT(**small, dtype=torch.float32)):
        with pytest.raises(ValueError, match="planner must be a UCT in float64, got"):
            search_tables(planner, tables, trees.roots())
    wrong = Tables(tables.successor, tables.reward[:, :1], tables.terminal, tables.value)
    with pytest.raises(ValueError, match=r"tables must be \[S, A\], \[S, A\], \[S\] and \[S\], got \[7, 2\]"):
        search_tables(UCT(**small), wrong, trees.roots())
    _compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ValueError, match="search_tables needs numba, got none"):
        search_tables(UCT(**small), tables, trees.roots())
