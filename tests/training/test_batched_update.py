"""One step of a stacked optimizer is that of each optimizer, to the last bit."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.optim import Adam, AdamW

from torchrl_reg.training.seeds.batched_update import StackedOptimizer, batched_step
from torchrl_reg.training.seeds.workers import Workers, current_worker

OPTIMIZERS = {
    "adam": lambda groups: Adam(groups, fused=True, eps=1e-5, betas=(0.8, 0.99)),
    "adamw": lambda groups: AdamW(groups, fused=True, weight_decay=0.1, maximize=True),
    "decay": lambda groups: Adam(groups, fused=True, weight_decay=0.1),
    "amsgrad": lambda groups: Adam(groups, fused=True, amsgrad=True),
    "not fused": lambda groups: Adam(groups),
}


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


def stacked_networks(count: int) -> tuple[list[nn.Sequential], list[nn.Parameter]]:
    """Networks whose parameters are views of the stacked ones, in the order of one network's."""
    nets = [network(seed) for seed in range(count)]
    wholes = []
    for singles in zip(*(net.parameters() for net in nets), strict=True):
        whole = torch.stack([single.detach() for single in singles])
        for single, view in zip(singles, whole.unbind(), strict=True):
            single.data = view
        wholes.append(nn.Parameter(whole))
    return nets, wholes


def give_stacked_gradients(nets: list[nn.Sequential], wholes: list[nn.Parameter], number: int) -> None:
    for seed, net in enumerate(nets):
        give_gradients(net, 10 * number + seed)
    for whole, singles in zip(wholes, zip(*(net.parameters() for net in nets), strict=True), strict=True):
        whole.grad = torch.stack([single.grad for single in singles])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_optimizers_step_as_each_alone(name):
    nets, wholes = stacked_networks(3)
    alone = [network(seed) for seed in range(3)]
    optimizers = [OPTIMIZERS[name](groups(net)) for net in nets]
    others = [OPTIMIZERS[name](groups(net)) for net in alone]
    whole_of = dict(zip(map(id, nets[0].parameters()), wholes, strict=True))
    assert StackedOptimizer.of(optimizers, lambda p: whole_of[id(p)]) is None  # no moments to stack yet
    stacked = None
    for number in range(5):
        give_stacked_gradients(nets, wholes, number)
        for seed, (net, optimizer) in enumerate(zip(alone, others, strict=True)):
            give_gradients(net, 10 * number + seed)
            optimizer.step()
        if stacked is None:
            for optimizer in optimizers:
                optimizer.step()
            stacked = StackedOptimizer.of(optimizers, lambda p: whole_of[id(p)])
        else:
            assert stacked.is_current()
            stacked.step()
        assert all(map(same, nets, alone))
    for optimizer, other in zip(optimizers, others, strict=True):
        for state, expected in zip(optimizer.state.values(), other.state.values(), strict=True):
            assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_stack_of_optimizers_ends_with_what_differs():
    nets, wholes = stacked_networks(2)
    optimizers = [OPTIMIZERS["adam"](groups(net)) for net in nets]
    whole_of = dict(zip(map(id, nets[0].parameters()), wholes, strict=True))
    give_stacked_gradients(nets, wholes, 0)
    for optimizer in optimizers:
        optimizer.step()
    stacked = StackedOptimizer.of(optimizers, lambda p: whole_of[id(p)])
    assert stacked is not None and stacked.is_current()
    optimizers[1].param_groups[0]["lr"] = 0.5
    assert not stacked.is_current()
    optimizers[1].step()
    assert StackedOptimizer.of(optimizers, lambda p: whole_of[id(p)]) is None  # one has made a step more


class _Loss(nn.Module):
    diagnostics = False

    def stacked_with(self, others: list[nn.Module]) -> SimpleNamespace:
        return SimpleNamespace(loss=SimpleNamespace(), parameter=lambda parameter: parameter, is_current=lambda: True)


def test_a_seed_that_breaks_the_batched_step_fails_alone() -> None:
    def broken(_: TensorDict) -> None:
        raise RuntimeError("probability tensor contains nan")

    def task(number: int) -> list[float]:
        def alone(minibatch: TensorDict) -> dict[str, torch.Tensor]:
            return broken(minibatch) if number == 1 else {"loss": torch.tensor(float(number))}

        weight, worker = nn.Parameter(torch.ones(2)), current_worker()
        step = batched_step(worker, alone, lambda *_: broken, _Loss(), [weight], Adam([weight]))
        return [step(TensorDict({}, [2]))["loss"].item() for _ in range(2)]

    workers = Workers([partial(task, number) for number in range(3)]).run()
    assert [worker.outcome for worker in workers] == [[0, 0], None, [2, 2]]
    assert [str(worker.error) for worker in workers] == ["None", "probability tensor contains nan", "None"]
