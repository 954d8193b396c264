"""The tanh-normal actor: TorchRL's own, whose bounds are moved and compared once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchrl.modules import TanhNormal

from torchrl_reg.modules import gaussian_actor


def test_it_keeps_its_bounds_and_follows_its_network(make: Any, states: Any) -> None:
    actor = make("gaussian", 2)
    with torch.inference_mode():  # what is made here has no gradient later
        actor(states(5))
    for rows in (states(5), states(5), states(1), states(5, dtype=torch.float64)):
        dtype = rows["observation"].dtype
        actor.to(dtype)
        dist, (loc, scale) = actor.get_dist(rows), actor.module[0](rows.clone()).select("loc", "scale").values()
        low, high = torch.tensor([[-2.3, -1.0], [0.7, 1.0]], dtype=dtype)
        plain = TanhNormal(loc, scale, low=low, high=high)
        torch.manual_seed(0)
        sample = dist.sample()
        torch.manual_seed(0)
        torch.testing.assert_close(sample, plain.sample(), rtol=0, atol=0)
        torch.testing.assert_close(dist.log_prob(sample), plain.log_prob(sample), rtol=0, atol=0)
        dist.rsample().sum().backward()
        assert not sample.requires_grad


def test_keys_and_scales(make: Any, states: Any) -> None:
    actor = make("gaussian", scale_lb=0.3, action_key=("agent", "action"))
    td = states(50)
    td["observation"] *= 1e3
    actor(td)
    assert actor.stored_action_key == ("agent", "action")
    assert {("agent", "action"), ("agent", "action_log_prob"), "loc", "scale"} <= set(td.keys(True, True))
    assert td["scale"].min() == torch.tensor(0.3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_box_is_exact_in_float64_and_of_the_networks_dtype(dtype: torch.dtype, states: Any) -> None:
    network = nn.Linear(4, 2).to(dtype)
    network.bias.data[0] = 1e4  # every action at the upper bound
    actor = gaussian_actor(network, low=[-0.2], high=[0.1])
    dist = actor.get_dist(states(3, dtype=dtype))
    assert dist.high.item() == torch.tensor(0.1, dtype=dtype).item() and dist.high.dtype == dtype
    action = actor(states(3, dtype=dtype))["action"]
    assert action.dtype == dtype and (action.double() - 0.1).abs().max() < 2 * torch.finfo(dtype).eps
