"""One step of a stacked optimizer or loss equals the steps of the single ones, bit for bit."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

from torchrl_reg.lab.learners.optimizers import FlatRAdam
from torchrl_reg.lab.seeds.batched_update import StackedOptimizer, _BatchedStep, batched_step
from torchrl_reg.lab.seeds.workers import Workers, current_worker

OPTIMIZERS = {
    "adam": partial(Adam, fused=True, eps=1e-5, betas=(0.8, 0.99)),
    "adamw": partial(AdamW, fused=True, weight_decay=0.1, maximize=True),
    "decay": partial(Adam, fused=True, weight_decay=0.1),
    "amsgrad": partial(Adam, fused=True, amsgrad=True),
    "not fused": Adam,
    "radam": RAdam,
}


class Seeds:
    """``count`` optimizers of two parameters (views of stacked ones, one per group), and of separate ones."""

    def __init__(self, make: Any, count: int) -> None:
        torch.manual_seed(0)
        self.wholes = [
            nn.Parameter(torch.randn(count, *shape)) for shape in ((8, 3), (8,))
        ]  # whole vectors: a rest is rounded otherwise
        self.views, self.alone = [], []
        for seed in range(count):
            self.views.append([nn.Parameter(whole.detach()[seed]) for whole in self.wholes])
            self.alone.append([nn.Parameter(whole.detach()[seed].clone()) for whole in self.wholes])
        self.optimizers, self.others = ([self.made(make, p) for p in each] for each in (self.views, self.alone))

    def made(self, make: Any, parameters: list[nn.Parameter]) -> Optimizer:
        return make([{"params": parameters[:1], "lr": 1e-2}, {"params": parameters[1:], "lr": 1e-3}])

    def whole(self, parameter: nn.Parameter) -> nn.Parameter:
        return self.wholes[[parameter is view for view in self.views[0]].index(True)]

    def stacked(self) -> StackedOptimizer | None:
        return StackedOptimizer.make(self.optimizers, self.whole)

    def give_gradients(self) -> None:
        for position, whole in enumerate(self.wholes):
            whole.grad = torch.randn(whole.shape)
            for parameters in zip(whole.grad, self.views, self.alone, strict=True):
                for each in parameters[1:]:
                    each[position].grad = parameters[0].clone()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_optimizers_step_as_each_alone(name):
    seeds = Seeds(OPTIMIZERS[name], 3)
    assert seeds.stacked() is None  # no moments to stack yet
    for number in range(8):
        seeds.give_gradients()
        if number == 1:
            stacked = seeds.stacked()
        for optimizer in [*seeds.others, *(seeds.optimizers if number == 0 else [stacked])]:
            optimizer.step()
        assert number == 0 or stacked.is_current()
        torch.testing.assert_close(seeds.views, seeds.alone, rtol=0, atol=0)
    states = ([list(each.state_dict()["state"].values()) for each in of] for of in (seeds.optimizers, seeds.others))
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_an_optimizer_that_steps_alone_again_goes_on_from_the_moments_of_the_stack():
    seeds = Seeds(FlatRAdam, 2)
    for number in range(8):
        seeds.give_gradients()
        if number == 1:
            stacked = seeds.stacked()
        for optimizer in [*seeds.others, *([stacked] if 0 < number < 6 else seeds.optimizers)]:
            optimizer.step()
        torch.testing.assert_close(seeds.views, seeds.alone)


def change_rate(optimizer):
    optimizer.param_groups[0]["lr"] = 0.5


def load(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def listen(optimizer):
    optimizer.register_step_post_hook(lambda *_: None)


@pytest.mark.parametrize(("change", "again"), [(change_rate, False), (listen, False), (load, True)])
@pytest.mark.parametrize("make", [OPTIMIZERS["adam"], FlatRAdam])
def test_a_stack_of_optimizers_ends_with_what_differs(make, change, again):
    seeds = Seeds(make, 2)
    seeds.give_gradients()
    for optimizer in seeds.optimizers:
        optimizer.step()
    stacked = seeds.stacked()
    assert stacked is not None and stacked.is_current()
    change(seeds.optimizers[1])
    assert not stacked.is_current() and (seeds.stacked() is not None) == again
    seeds = Seeds(make, 2)
    seeds.give_gradients()
    for optimizer in (*seeds.optimizers, seeds.optimizers[1]):
        optimizer.step()
    assert seeds.stacked() is None  # one has made a step more


def test_each_seed_is_clipped_by_its_own_norm():
    whole = nn.Parameter(torch.zeros(2, 2))
    whole.grad = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    norms = _BatchedStep._clip(SimpleNamespace(_parameters=[whole]), 1.0)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(whole.grad, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


class Loss(nn.Module):
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
        step = batched_step(worker, alone, lambda *_: broken, Loss(), [weight], SGD([weight]))
        return [step(TensorDict({}, [2]))["loss"].item() for _ in range(2)]

    workers = Workers([partial(task, number) for number in range(3)]).run()
    assert [worker.outcome for worker in workers] == [[0, 0], None, [2, 2]]
    assert [str(worker.error) for worker in workers] == ["None", "probability tensor contains nan", "None"]
