"""Losses over a policy as they were at 64882d1 (see ``tests/objectives/test_golden.py``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.mark.parametrize("variant", ["plain", "masked", "weighted", "quiet"])
def test_nothing_moved(case: Any, golden: Any, request: pytest.FixtureRequest, variant: str) -> None:
    data = case.batch(9, dtype=torch.float64)
    kwargs: dict[str, Any] = {}
    if variant == "masked":
        mask = torch.arange(data.numel()).reshape(data.shape) % 4 != 1
        data["collector", "mask"] = mask
        data["next", "reward"][~mask] = torch.nan
    elif variant == "weighted":
        data["priority_weight"] = torch.linspace(0.2, 2.0, data.numel(), dtype=torch.float64).reshape(data.shape)
        kwargs = {"reduction": "sum"}
    elif variant == "quiet":
        kwargs = {"diagnostics": False, "reduction": "none"}
    name = request.node.callspec.params["case"]
    golden(f"policy/{name}/{variant}", case.loss(**kwargs).double(), data)


def test_learnt_coefficients(cases: Any, golden: Any) -> None:
    golden(
        "policy/iq/target_entropy",
        cases["iq"].loss(target_entropy=1.0).double(),
        cases["iq"].batch(9, dtype=torch.float64),
    )
    case = cases["trust_pcl"]
    golden("policy/trust_pcl/max_kl", case.loss(max_kl=0.05).double(), case.batch(9, dtype=torch.float64))
