"""Writes golden_trees.json: small searches of every planner, to be read and compared with in test_golden_trees.py.

python tests/planning/make_golden_trees.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from torchrl_reg.planning import MENTS, PUCT, RENTS, TENTS, UCT, Evaluation, SyntheticTrees, TabularModel
from torchrl_reg.tabular import chain

sys.path.insert(0, str(Path(__file__).parent))
from reference import as_json

GOLDEN = Path(__file__).parent / "golden_trees.json"


def prior_evaluation(state: torch.Tensor) -> Evaluation:
    """Values and a prior that lean to action 1."""
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(len(state), 2)
    return Evaluation(0.1 * state.double(), prior=prior)


def golden_trees() -> dict[str, Any]:
    """The searches, by name."""
    uniform = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tree = SyntheticTrees(branching=2, depth=3, seed=0)
    soft = {"tau": 0.5, "epsilon": 0.3, "num_simulations": 12, "gamma": 0.9}
    runs: dict[str, Any] = {
        "uct": UCT(num_simulations=12, c=0.7, gamma=0.9)(tree, tree.roots()),
        "ments": MENTS(**soft)(tree, tree.roots(), uniform=uniform),
        "rents": RENTS(**soft)(tree, tree.roots(), uniform=uniform),
        "tents": TENTS(**soft)(tree, tree.roots(), uniform=uniform),
    }
    puct = PUCT(num_simulations=12, c=0.7, gamma=0.9)
    runs["puct, chain"] = puct(TabularModel(chain(4, 0.9)), torch.tensor([1]), evaluate=prior_evaluation)
    generator = torch.Generator().manual_seed(3)
    slippery = TabularModel(chain(4, 0.9, slip=0.4), generator=generator)
    runs["ments, slippery chain"] = MENTS(**soft)(slippery, torch.tensor([1]), uniform=uniform)
    return {name: as_json(found.tree) for name, found in runs.items()}


if __name__ == "__main__":
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(tree)}" for name, tree in golden_trees().items())
    GOLDEN.write_text(f"{{\n{text}\n}}\n")
