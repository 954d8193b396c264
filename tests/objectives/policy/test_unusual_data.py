"""Losses over a policy, on data and under transforms that are legal and unusual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import OneHot
from torchrl.modules import MaskedCategorical, OneHotCategorical, ProbabilisticActor, ValueOperator

from torchrl_reg.objectives import ImplicitQLoss, PolyakTargetUpdate


def value(loss: Any, data: Any) -> torch.Tensor:
    torch.manual_seed(3)
    return loss(data)["loss"]


def test_terminated_alone_says_where_episodes_end(case: Any) -> None:
    data = case.batch(9)
    data["next", "done"] = data["next", "terminated"].clone()
    expected = value(case.loss(), data.clone())
    del data["next", "done"]
    torch.testing.assert_close(value(case.loss(), data), expected)


def test_vmap_where_no_target_network_was_asked_for(cases: Any) -> None:
    for name, kwargs in (("iq", {"delay_value": False}), ("pcl", {}), ("m_iq_residual", {})):
        case = cases[name]
        loss, data = case.loss(perturb=False, **kwargs), case.batch(9)
        expected = value(loss, data.clone()).detach()
        params = TensorDict.from_module(loss).data
        sets = torch.stack([params, params.clone()]).contiguous()

        def alone(own: TensorDict, loss: Any = loss, data: TensorDict = data) -> torch.Tensor:
            with own.to_module(loss):
                return value(loss, data.copy())

        torch.testing.assert_close(torch.vmap(alone, randomness="same")(sets), expected.expand(2))


def test_path_consistency_is_of_single_steps(cases: Any) -> None:
    data = cases["pcl"].batch(3)
    data["steps_to_next_obs"] = torch.full((*data.shape, 1), 2)
    with pytest.raises(ValueError, match="single steps for path consistency, got n-step"):
        cases["pcl"].loss()(data)


def test_a_value_network_with_batch_statistics_sees_no_nan(cases: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    loss = cases["iq"].loss((cases["iq"].networks()[0], ValueOperator(net)), perturb=False)
    data = cases["iq"].batch(9)
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = torch.nan
    assert data["next", "terminated"].any() and value(loss, data).isfinite()
    statistics = [(name, buffer) for name, buffer in loss.named_buffers() if "running" in name]
    assert statistics and all(buffer.isfinite().all() for _, buffer in statistics)


def test_masked_rows_and_a_mask_of_actions() -> None:
    torch.manual_seed(0)
    logits = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["logits"])
    keys = {"logits": "logits", "mask": "allowed"}
    actor = ProbabilisticActor(logits, in_keys=keys, distribution_class=MaskedCategorical)
    loss = ImplicitQLoss(actor, ValueOperator(nn.Linear(4, 1)), tau=0.5).make_value_estimator(gamma=0.9)
    PolyakTargetUpdate(loss, rate=0.5)
    flags = torch.zeros(8, 1, dtype=torch.bool)
    following = {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1), "terminated": flags, "done": flags}
    root = {"observation": torch.randn(8, 4), "allowed": torch.ones(8, 3, dtype=torch.bool), "next": following}
    data = TensorDict({**root, "action": torch.randint(3, (8,))}, [8])
    data["collector", "mask"] = (torch.arange(8) < 6).unsqueeze(-1)
    data["allowed"][6:] = False  # as padding is
    loss(data)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


def test_boolean_one_hot_actions() -> None:
    torch.manual_seed(0)
    logits = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(logits, in_keys=["logits"], distribution_class=OneHotCategorical)
    loss = ImplicitQLoss(actor, ValueOperator(nn.Linear(4, 1)), tau=0.5).make_value_estimator(gamma=0.9)
    PolyakTargetUpdate(loss, rate=0.5)
    flags = torch.zeros(8, 1, dtype=torch.bool)
    following = {"observation": torch.randn(8, 4), "reward": torch.randn(8, 1), "terminated": flags, "done": flags}
    action = OneHot(3).rand([8])
    data = TensorDict({"observation": torch.randn(8, 4), "action": action, "next": following}, [8])
    expected = loss(data.clone().set("action", action.long()))["loss"]
    assert action.dtype == torch.bool
    torch.testing.assert_close(loss(data)["loss"], expected)
