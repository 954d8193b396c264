"""The step without bookkeeping is the optimizer's own, to the last bit, and steps aside where it would not be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from torchrl_reg.training.loop.update import OptimizerStep

OPTIMIZERS = {
    "adam": lambda groups: Adam(groups, fused=True, eps=1e-5, betas=(0.8, 0.99)),
    "adamw": lambda groups: AdamW(groups, fused=True, weight_decay=0.1, maximize=True),
    "decay": lambda groups: Adam(groups, fused=True, weight_decay=0.1),
    "amsgrad": lambda groups: Adam(groups, fused=True, amsgrad=True),
    "not fused": lambda groups: Adam(groups),
    "sgd": lambda groups: SGD(groups, momentum=0.9),
}
ASIDE = ("amsgrad", "not fused", "sgd")


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def groups(net: nn.Sequential) -> list[dict]:
    return [{"params": net[0].parameters(), "lr": 1e-2}, {"params": net[2].parameters(), "lr": 1e-3}]


def give_gradients(net: nn.Module, number: int) -> None:
    for parameter in net.parameters():
        parameter.grad = None
    generator = torch.Generator().manual_seed(number)
    net(torch.randn(5, 3, generator=generator)).square().sum().backward()


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def calls_of_step(optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows whenever the class's ``step`` runs; unlike a hook it is not noticed."""
    calls, original = [], type(optimizer).step

    def step(self, *args):
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(type(optimizer), "step", step)
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_optimizer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, reference = network(), network()
    optimizer, expected = OPTIMIZERS[name](groups(net)), OPTIMIZERS[name](groups(reference))
    step = OptimizerStep(optimizer)
    calls = calls_of_step(optimizer, monkeypatch)
    by_itself = 0
    for number in range(12):
        for optimizers in (optimizer, expected):
            optimizers.param_groups[0]["lr"] = 1e-2 / (1 + number)
        if number == 7:  # a checkpoint is loaded: all state tensors are others
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        give_gradients(net, number)
        before = len(calls)
        step()
        by_itself += len(calls) == before
        give_gradients(reference, number)
        expected.step()
        assert same(net, reference)
    assert by_itself == (0 if name in ASIDE else 10)  # all but the first, and the one after loading
    states = (each.state_dict()["state"].values() for each in (optimizer, expected))
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_parameters_that_come_and_go() -> None:
    net, reference = network(), network()
    optimizer, expected = (Adam(n.parameters(), lr=1e-2, fused=True) for n in (net, reference))
    step = OptimizerStep(optimizer)
    for number in range(9):
        for chosen, one_step in ((net, step), (reference, expected.step)):
            give_gradients(chosen, number)
            if number < 3 or number == 5:  # at first, and once later
                chosen[2].weight.grad = None
            one_step()
        assert same(net, reference)
    assert optimizer.state[net[2].weight]["step"] == 5


def test_hooks_and_schedulers_are_heard() -> None:
    net = network()
    optimizer = Adam(net.parameters(), lr=1e-2, fused=True)
    step, heard = OptimizerStep(optimizer), []
    for number in range(2):
        give_gradients(net, number)
        step()
    handle = optimizer.register_step_post_hook(lambda *_: heard.append("hook"))
    step()
    handle.remove()
    step()
    assert heard == ["hook"]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # warns unless optimizer.step() was called before
    step()
    scheduler.step()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    optimizer.param_groups[1]["params"][0].grad = torch.ones(2)
    step()
    assert (optimizer.param_groups[1]["params"][0] < 1).all()
