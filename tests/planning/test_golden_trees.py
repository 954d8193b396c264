"""Every planner grows the trees that it grew when golden_trees.json was written and read through.

``RECORD_GOLDEN=1 pytest -n 0`` of this file writes it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from torchrl_reg.planning import MENTS, PUCT, RENTS, TENTS, UCT, Evaluation, SyntheticTrees, TabularModel
from torchrl_reg.tabular import chain

GOLDEN = Path(__file__).parent / "golden_trees.json"
EXPECTED = json.loads(GOLDEN.read_text())
ROUNDED = ("q", "reward")


def as_json(tree: Any, number: int = 0) -> dict[str, Any]:
    """The first tree as nested dictionaries, children by action and outcome."""
    at = {name: value[0, number] for name, value in vars(tree).items() if isinstance(value, torch.Tensor)}
    exists = (at["children"] >= 0).nonzero().tolist()
    return {
        "node": number,
        "state": at["state"].tolist(),
        "value": round(at["value"].item(), 12),
        **{name: int(at[name]) for name in ("passed", "alive")},
        "visits": at["visits"].int().tolist(),
        **{name: [round(x, 12) for x in at[name].tolist()] for name in ROUNDED},
        "children": {f"{a}.{k}": as_json(tree, int(at["children"][a, k])) for a, k in exists},
    }


def leaves(part: Any, at: str = "") -> dict[str, float]:
    """The numbers of nested dictionaries and lists, by their place."""
    if not isinstance(part, dict | list):
        return {at: part}
    items = part.items() if isinstance(part, dict) else enumerate(part)
    return {place: number for name, inner in items for place, number in leaves(inner, f"{at}/{name}").items()}


def prior_evaluation(state: torch.Tensor) -> Evaluation:
    """Values and a prior that lean to action 1."""
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(len(state), 2)
    return Evaluation(0.1 * state.double(), prior=prior)


def golden_trees() -> dict[str, Any]:
    uniform = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tree, start = SyntheticTrees(branching=2, depth=3, seed=0), torch.tensor([1])
    size: dict[str, Any] = {"num_simulations": 12, "gamma": 0.9}
    ments, rents, tents = (planner(tau=0.5, epsilon=0.3, **size) for planner in (MENTS, RENTS, TENTS))
    slippery = TabularModel(chain(4, 0.9, slip=0.4), generator=torch.Generator().manual_seed(3))
    runs = {
        "uct": UCT(c=0.7, **size)(tree, tree.roots()),
        "ments": ments(tree, tree.roots(), uniform=uniform),
        "rents": rents(tree, tree.roots(), uniform=uniform),
        "tents": tents(tree, tree.roots(), uniform=uniform),
        "puct, chain": PUCT(c=0.7, **size)(TabularModel(chain(4, 0.9)), start, evaluate=prior_evaluation),
        "ments, slippery chain": ments(slippery, start, uniform=uniform),
    }
    return {name: as_json(found.tree) for name, found in runs.items()}


def test_every_golden_tree() -> None:
    grown = golden_trees()
    if os.environ.get("RECORD_GOLDEN") == "1":
        text = ",\n".join(f"{json.dumps(name)}: {json.dumps(tree)}" for name, tree in grown.items())
        GOLDEN.write_text(f"{{\n{text}\n}}\n")
        return
    assert leaves(grown) == pytest.approx(leaves(EXPECTED), abs=1e-9)
