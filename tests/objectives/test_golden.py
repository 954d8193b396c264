"""Regression: losses, gradients, priorities and diagnostics are those recorded in ``golden.json``.

Passing shows that a refactoring changed nothing, not that the numbers are right: other tests show that. A
number may change only with a reason in the commit, which records it anew: ``RECORD_GOLDEN=1 pytest -n 0`` of this file.
The entries that the file has are those compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule

ENTRIES = list(json.loads(Path(__file__).with_name("golden.json").read_text()))


def spoiled(variant: str, data: Any) -> Any:
    """``data`` with what makes the variant."""
    if variant == "n_step":
        data["steps_to_next_obs"] = torch.arange(9).remainder(3).add(1).unsqueeze(-1)
    elif variant == "one_hot":
        data["action"] = torch.nn.functional.one_hot(data["action"], 3).bool()
    elif variant == "masked":
        mask = torch.arange(data.numel()).reshape(data.shape) % 4 != 1
        data["collector", "mask"] = mask.unsqueeze(-1)
        data["next", "reward"][~mask] = torch.nan
    elif variant == "weighted":
        data["priority_weight"] = torch.linspace(0.2, 2.0, data.numel(), dtype=torch.float64).reshape(data.shape)
    elif variant == "forbidden":
        data["action"].clamp_(max=1)
        for at in (data, data["next"]):
            at["allowed"] = torch.tensor([True, True, False]).expand(9, 3).clone()
    return data


def options(variant: str) -> dict[str, Any]:
    """Arguments of the loss."""
    torch.manual_seed(4)
    network = TensorDictModule(torch.nn.Linear(4, 3), ["observation"], ["log_prior"])
    return {
        "quiet": {"diagnostics": False, "reduction": "none"},
        "weighted": {"reduction": "sum"},
        "l1": {"loss_function": "l1"},
        "l2": {"loss_function": "l2"},
        "prior_network": {"prior": None, "prior_network": network},
        "target_entropy": {"target_entropy": 1.0},
        "max_kl": {"max_kl": 0.05},
    }.get(variant, {})


@pytest.mark.parametrize("entry", ENTRIES)
def test_nothing_moved(all_cases: Any, golden: Any, entry: str) -> None:
    *_, name, variant = entry.split("/")
    case = all_cases[name]
    shape = (3, 5) if variant.startswith("lambda") else (3, 4) if variant == "sequences" else (9,)
    data = spoiled(variant, case.batch(*shape, dtype=torch.float64))
    actor = {"one_hot": {"one_hot": True}, "forbidden": {"action_mask_key": "allowed"}}.get(variant)
    how = {"loss_function": "smooth_l1"} if getattr(case, "head", "") == "expected" else {}  # the default once
    loss = case.loss(None if actor is None else case.actor(**actor), **how | options(variant)).double()
    if variant.startswith("lambda"):
        loss.make_value_estimator("soft_tdlambda", gamma=0.9, lmbda=float(variant.removeprefix("lambda=")))
        data.names = [None, "time"]
    golden(entry, loss, data)
