"""Layers run one by one: the network's own answer, whatever was done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP

from torchrl_reg.modules.layers import layer_by_layer


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Dropout(0.5), nn.ReLU()), MLP(8, 3, num_cells=[5]))


@pytest.fixture
def calls() -> Iterator[list[str]]:
    yield []


def normalized() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.1), nn.ReLU(), nn.Linear(8, 3))
    nn.init.normal_(net[1].weight)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize("make", [network, normalized])
def test_the_same_bits_and_gradients(make: Callable[[], nn.Sequential]) -> None:
    net, x = make().eval(), torch.randn(6, 4)
    run = layer_by_layer(net)
    assert run is not net and torch.equal(run(x), net(x))
    for call in (run, net):
        net.zero_grad()
        call(x).square().sum().backward()
        gradients = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
        if call is run:
            first = gradients
    assert all(torch.equal(a, b) for a, b in zip(first, gradients, strict=True))


def test_it_follows_train_mode_and_swapped_parameters() -> None:
    net, x = network(), torch.randn(6, 4)
    run = layer_by_layer(net)
    assert not torch.equal(run(x), run(x)), "dropout"
    net.eval()
    zeros = TensorDict.from_module(net).detach().clone().zero_()
    with zeros.to_module(net):
        assert not run(x).any()
    assert run(x).any()


def test_hooks_are_heard(calls: list[str]) -> None:
    """On the whole, on an inner layer, forward and backward, and the global ones."""
    net, x = network().eval(), torch.randn(6, 4)
    run = layer_by_layer(net)
    handles = [
        net.register_forward_hook(lambda *_: calls.append("whole")),
        net[1].register_forward_pre_hook(lambda *_: calls.append("sequence")),
        net[2][0].register_full_backward_hook(lambda *_: calls.append("backward")),
        torch.nn.modules.module.register_module_forward_hook(lambda *_: calls.append("global")),
    ]
    for handle, name in zip(handles, ("whole", "sequence", "backward", "global"), strict=True):
        others = [h for h in handles if h is not handle]
        calls.clear()
        run(x).sum().backward()
        assert name in calls
        del others
        handle.remove()
    calls.clear()
    run(x)
    assert not calls


def test_networks_of_another_kind_stay_themselves() -> None:
    class Mine(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    class Loud(nn.Linear):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return super().__call__(x) * 2

    for net in (
        Mine(nn.Linear(4, 3)),
        nn.Sequential(Mine(nn.Linear(4, 3))),
        nn.Sequential(Loud(4, 3)),
        nn.Linear(4, 3),
    ):
        assert layer_by_layer(net) is net
    shaped = MLP(4, torch.Size([2, 3]), num_cells=[5])
    assert layer_by_layer(shaped) is shaped


def test_several_inputs_go_to_the_network() -> None:
    net = MLP(6, 3, num_cells=[5])
    one, two = torch.randn(2, 4), torch.randn(2, 2)
    assert torch.equal(layer_by_layer(net)(one, two), net(one, two))


def test_several_inputs_of_an_mlp_are_joined() -> None:
    net, inputs = MLP(6, 1, num_cells=[5, 5], activation_class=nn.ReLU), (torch.randn(3, 4), torch.randn(3, 2))
    assert torch.equal(layer_by_layer(net)(*inputs), net(*inputs))


def test_a_relu_changes_no_tensor_of_others() -> None:
    """It works in the memory of the linear layer before it alone, never in the input's."""
    for first in (nn.Identity(), nn.Flatten(0, 0), nn.Linear(4, 4)):
        net, x = nn.Sequential(first, nn.ReLU(), nn.Linear(4, 2)), torch.randn(6, 4)
        kept = x.clone()
        layer_by_layer(net)(x)
        assert torch.equal(x, kept)
