"""Losses, gradients, priorities and diagnostics as they were at 64882d1, before the four slots became objects.

The file was recorded with ``RECORD_GOLDEN=1 pytest -n 0`` of this file.
"""

from __future__ import annotations

from typing import Any

import policy_cases
import pytest
import torch
from tensordict.nn import TensorDictModule

NEWER = ("c51", "m_c51", "qr", "qr_double", "soft_double", "sparse")
VARIANTS = ["plain", "sequences", "n_step", "one_hot", "masked", "weighted", "forbidden", "quiet"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_moved(case: Any, batch: Any, golden: Any, request: pytest.FixtureRequest, variant: str) -> None:
    data = batch(*((3, 4) if variant == "sequences" else (9,)), dtype=torch.float64)
    actor, kwargs = case.actor(), {}
    if variant == "n_step":
        data["steps_to_next_obs"] = torch.arange(9).remainder(3).add(1).unsqueeze(-1)
    elif variant == "one_hot":
        data["action"] = torch.nn.functional.one_hot(data["action"], 3).bool()
        actor = case.actor(one_hot=True)
    elif variant == "masked":
        mask = torch.arange(9) % 4 != 1
        data["collector", "mask"] = mask.unsqueeze(-1)
        data["next", "reward"][~mask] = torch.nan
    elif variant == "weighted":
        data["priority_weight"] = torch.linspace(0.2, 2.0, 9, dtype=torch.float64)
        kwargs = {"reduction": "sum"}
    elif variant == "forbidden":
        data["action"].clamp_(max=1)
        for at in (data, data["next"]):
            at["allowed"] = torch.tensor([True, True, False]).expand(9, 3).clone()
        actor = case.actor(action_mask_key="allowed")
    elif variant == "quiet":
        kwargs = {"diagnostics": False, "reduction": "none"}
    name = request.node.callspec.params["case"]
    if name in NEWER:
        pytest.skip("did not exist then")
    golden(f"{name}/{variant}", case.loss(actor, **kwargs).double(), data)


@pytest.mark.parametrize("name", ["soft_dqn", "m_dqn"])
@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_traces(cases: Any, batch: Any, golden: Any, name: str, lam: float) -> None:
    loss = cases[name].loss().double()
    loss.make_value_estimator("soft_tdlambda", gamma=0.9, lmbda=lam)
    data = batch(3, 5, dtype=torch.float64)
    data.names = [None, "time"]
    golden(f"{name}/lambda={lam}", loss, data)


@pytest.mark.parametrize("name", ["soft_dqn", "m_dqn", "al", "mirl"])
@pytest.mark.parametrize("how", ["l1", "l2"])
def test_distances(cases: Any, batch: Any, golden: Any, name: str, how: str) -> None:
    golden(f"{name}/{how}", cases[name].loss(loss_function=how).double(), batch(9, dtype=torch.float64))


@pytest.mark.parametrize("name", ["mirl", "mi_iqn"])
def test_state_dependent_priors(cases: Any, batch: Any, golden: Any, name: str) -> None:
    torch.manual_seed(4)
    network = TensorDictModule(torch.nn.Linear(4, 3), ["observation"], ["log_prior"])
    loss = cases[name].loss(prior=None, prior_network=network).double()
    golden(f"{name}/prior_network", loss, batch(9, dtype=torch.float64))


@pytest.mark.parametrize("variant", ["plain", "masked", "weighted", "quiet"])
@pytest.mark.parametrize("name", list(policy_cases.CASES))
def test_losses_over_a_policy(golden: Any, name: str, variant: str) -> None:
    case = policy_cases.CASES[name]
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
    golden(f"policy/{name}/{variant}", case.loss(**kwargs).double(), data)


def test_learnt_coefficients(all_cases: Any, golden: Any) -> None:
    golden(
        "policy/iq/target_entropy",
        all_cases["iq"].loss(target_entropy=1.0).double(),
        all_cases["iq"].batch(9, dtype=torch.float64),
    )
    case = all_cases["trust_pcl"]
    golden("policy/trust_pcl/max_kl", case.loss(max_kl=0.05).double(), case.batch(9, dtype=torch.float64))
