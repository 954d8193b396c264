"""The flow policy: its beginning, its layers, and how it is reset; its density: test_box_actor.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import TanhNormal

from torchrl_reg.modules import FlowActor

LOW, HIGH = [-2.3, -1.0, 0.0], [0.7, 1.0, 3.0]


def test_starts_as_the_tanh_of_a_standard_normal(states: Any) -> None:
    dist = FlowActor(nn.Linear(4, 8), 8, low=LOW, high=HIGH).get_dist(states(6))
    action = dist.sample()
    plain = TanhNormal(torch.zeros(6, 3), torch.ones(6, 3), low=torch.tensor(LOW), high=torch.tensor(HIGH))
    torch.testing.assert_close(dist.log_prob(action), plain.log_prob(action), rtol=1e-3, atol=1e-3)
    centre = (torch.tensor(LOW) + torch.tensor(HIGH)) / 2
    torch.testing.assert_close(dist.deterministic_sample, centre.expand(6, 3))


def test_layers_move_every_dimension_and_depend_on_the_state(make: Any, states: Any) -> None:
    dist = make("flow", num_layers=2).get_dist(states(2))
    moved = [c.scale_and_shift(torch.zeros(2, 3))[1][0] != 0 for c in dist.couplings]
    assert torch.stack(moved).tolist() == [[True, False, True], [False, True, False]]
    assert not torch.allclose(*dist.deterministic_sample)


def test_log_scales_are_bounded(make: Any, states: Any) -> None:
    actor = make("flow", max_log_scale=0.7)
    nn.init.normal_(actor.weight_out, std=100.0)
    dist = actor.get_dist(states(50))
    s = torch.stack([c.scale_and_shift(torch.randn(50, 3))[0] for c in dist.couplings])
    assert 0.69 < s.abs().max() <= 0.7


def test_reparametrized_samples_have_gradients_and_samples_have_none(make: Any, states: Any) -> None:
    actor = make("flow")
    dist = actor.get_dist(states(5))
    assert not dist.sample().requires_grad
    dist.rsample().sum().backward()
    assert actor.weight_out.grad.any() and actor.torso.weight.grad.any()
    with pytest.raises(NotImplementedError):
        dist.entropy()


@pytest.mark.parametrize("functional", [False, True])
def test_reset_parameters_recursive_reaches_the_couplings(functional: bool, make: Any) -> None:
    actor = make("flow")
    before = {name: p.clone() for name, p in actor.named_parameters()}
    if functional:
        params = actor.reset_parameters_recursive(TensorDict.from_module(actor))
        after = {name: params[tuple(name.split("."))] for name in before}
    else:
        actor.reset_parameters_recursive()
        after = dict(actor.named_parameters())
    assert not any(after[name].equal(p) for name, p in before.items())
    assert not after["weight_out"].any() and not after["bias_out"].any()
