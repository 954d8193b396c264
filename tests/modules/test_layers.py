"""Layers run one by one: the network's own answer, whatever was done to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.modules import MLP

from torchrl_reg.modules.layers import layer_by_layer
from torchrl_reg.modules.stacked import MANY_ROWS, stack_layers


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Dropout(0.5), nn.ReLU()), MLP(8, 3, num_cells=[5]))


def normalized() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, eps=0.1), nn.ReLU(), nn.Linear(8, 3))
    nn.init.normal_(net[1].weight)  # type: ignore[arg-type]
    return net


@pytest.mark.parametrize(
    ("net", "widths"),
    [
        (network().eval(), [4]),
        (normalized(), [4]),
        (nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(4, 2)), [4]),  # a relu in its input's memory would show
        (nn.Sequential(nn.Flatten(0, 0), nn.ReLU(), nn.Linear(4, 2)), [4]),
        (MLP(6, 1, num_cells=[5, 5], activation_class=nn.ReLU), [4, 2]),  # several inputs are joined
    ],
)
def test_the_same_bits_and_gradients(net: nn.Module, widths: list[int]) -> None:
    inputs = [torch.randn(6, width) for width in widths]
    kept, run, results = [x.clone() for x in inputs], layer_by_layer(net), []
    for call in (run, net):
        out = call(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(net.parameters()))])
    assert run is not net and all(map(torch.equal, inputs, kept))
    assert all(map(torch.equal, *results))


def test_it_follows_train_mode_and_swapped_parameters() -> None:
    net, x = network(), torch.randn(6, 4)
    run = layer_by_layer(net)
    assert not torch.equal(run(x), run(x)), "dropout"
    net.eval()
    with TensorDict.from_module(net).detach().clone().zero_().to_module(net):
        assert not run(x).any()
    assert run(x).any()


@pytest.mark.parametrize(
    "register",
    [
        lambda net, hook: net.register_forward_hook(hook),
        lambda net, hook: net[1].register_forward_pre_hook(hook),
        lambda net, hook: net[2][0].register_full_backward_hook(hook),
        lambda net, hook: torch.nn.modules.module.register_module_forward_hook(hook),
    ],
    ids=["whole", "inner sequence", "backward", "global"],
)
def test_hooks_are_heard_until_they_are_removed(register: Any) -> None:
    net, calls = network().eval(), list[int]()
    run = layer_by_layer(net)
    handle = register(net, lambda *_: calls.append(1))
    run(torch.randn(6, 4)).sum().backward()
    handle.remove()
    heard = len(calls)
    run(torch.randn(6, 4)).sum().backward()
    assert 0 < heard == len(calls)


class Mine(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Loud(nn.Linear):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) * 2


@pytest.mark.parametrize(
    "net",
    [
        Mine(nn.Linear(4, 3)),
        nn.Sequential(Mine(nn.Linear(4, 3))),
        nn.Sequential(Loud(4, 3)),
        nn.Linear(4, 3),
        MLP(4, torch.Size([2, 3]), num_cells=[5]),
    ],
)
def test_networks_of_another_kind_stay_themselves(net: nn.Module) -> None:
    assert layer_by_layer(net) is net


@pytest.mark.parametrize("rows", [5, MANY_ROWS])  # together, and one network after the other
def test_stacked_layer_norms_are_those_of_each_network(rows: int) -> None:
    singles = [normalized().double() for _ in range(3)]
    net = normalized().double()
    stack_layers(net)
    for name, parameter in net.named_parameters():
        parameter.data = torch.stack([single.get_parameter(name).detach() for single in singles])
    x = torch.randn(3, rows, 4, dtype=torch.float64)
    out = layer_by_layer(net)(x)
    each = [single(part) for single, part in zip(singles, x, strict=True)]
    torch.testing.assert_close(out, torch.stack(each))
    found = torch.autograd.grad(out.square().sum(), list(net.parameters()))
    alone = [torch.autograd.grad(o.square().sum(), list(s.parameters())) for o, s in zip(each, singles, strict=True)]
    torch.testing.assert_close(list(found), [torch.stack(column) for column in zip(*alone, strict=True)])
