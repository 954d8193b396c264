"""Updates as one graph: what changes is followed, or gets a graph of its own; what does not fit is left to eager."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.lab import make_update
from torchrl_reg.lab.learners import graph
from torchrl_reg.lab.learners.optimizers import FlatRAdam
from torchrl_reg.lab.learners.update import _gradients
from torchrl_reg.modules import ImplicitQuantileNetwork, NoisyLinear, QuantileQActor
from torchrl_reg.objectives import (
    AdvantageLearningLoss,
    HardTargetUpdate,
    MunchausenDQNLoss,
    MunchausenIQNLoss,
    PolyakTargetUpdate,
)
from torchrl_reg.objectives.stacked import StackedLoss


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs that were made, which are run as they were traced: compiling them is slow."""
    made: list[Any] = []
    monkeypatch.setattr(graph, "compile_trace", lambda found, _: (made.append(found), found)[1])
    return made


def minibatch(rows: int = 10, seed: int = 1) -> TensorDict:
    generator = torch.Generator().manual_seed(seed)
    done = torch.rand(rows, 1, generator=generator) < 0.3
    here, following, reward = (torch.randn(rows, size, generator=generator) for size in (3, 3, 1))
    action = torch.randint(2, (rows,), generator=generator)
    step = {"observation": following, "reward": reward, "done": done, "terminated": done.clone()}
    return TensorDict({"observation": here, "action": action, "next": step}, [rows])


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


class Twin:
    """An update of M-DQN, eager or as a graph."""

    def __init__(
        self,
        compile: bool,
        net: Callable[[], nn.Module] = network,
        adam: Callable[..., Optimizer] = Adam,
        target: Callable[[Any], Any] = lambda loss: PolyakTargetUpdate(loss, rate=0.3),
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.actor = QValueActor(net(), spec=Categorical(2))
        self.loss = MunchausenDQNLoss(self.actor, tau=0.5, alpha=0.5, clip_min=-0.3).make_value_estimator(gamma=0.9)
        self.optimizer = adam(self.loss.parameters(), lr=0.01, **({"fused": True} if adam in (Adam, AdamW) else {}))
        self.target, self.rows, self.count = target(self.loss), 10, 0
        self.update = make_update(self.loss, self.optimizer, self.target, compile=compile, **options)

    def run(self, updates: int = 3) -> list[Any]:
        """Scalars of these updates; the state after them."""
        found: list[Any] = []
        for _ in range(updates):
            self.count += 1
            torch.manual_seed(self.count)
            found.append(dict(self.update(minibatch(self.rows, self.count))))
        state = self.optimizer.state_dict()["state"]
        return [*found, self.loss.state_dict(), state, torch.rand(1)]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def move(twin: Twin) -> None:
    for parameter in twin.loss.parameters():
        parameter.data = parameter.data.clone()


def load(twin: Twin) -> None:
    twin.optimizer.load_state_dict(copy.deepcopy(twin.optimizer.state_dict()))


def swap(twin: Twin) -> None:
    twin.loss.shaping = AdvantageLearningLoss(twin.actor, alpha=0.3).shaping


def freeze(twin: Twin) -> None:
    next(twin.loss.parameters()).requires_grad_(False)


def assign(name: str, value: Any) -> Callable[[Twin], None]:
    """Of the attribute of that name."""

    def change(twin: Twin) -> None:
        *path, last = name.split(".")
        owner: Any = twin
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, last, value)

    return change


def of_group(name: str, value: Any) -> Callable[[Twin], None]:
    return lambda twin: twin.optimizer.param_groups[0].update({name: value})


#: A change between two updates, and the graphs that there have been afterwards.
CHANGES: dict[str, tuple[Callable[[Twin], Any], int]] = {
    "nothing": (lambda twin: None, 1),
    "the learning rate": (of_group("lr", 0.1), 1),
    "the rate of the target": (assign("target.rate", 0.9), 1),
    "a temperature": (assign("loss.tau", 0.05), 1),
    "a weight that becomes 0": (assign("loss.alpha", 0.0), 2),
    "momentum": (of_group("betas", (0.5, 0.9)), 2),
    "weight decay": (of_group("weight_decay", 0.1), 2),
    "the number of rows": (assign("rows", 7), 2),
    "diagnostics": (assign("loss.diagnostics", False), 2),
    "the distance": (assign("loss.loss_function", "l1"), 2),
    "eval mode": (lambda twin: twin.loss.value_network.eval(), 2),
    "a module's own number": (lambda twin: setattr(twin.actor.module[0].module[2], "p", 0.1), 2),
    "a frozen parameter": (freeze, 2),
    "another part": (swap, 2),
    "moments that were loaded": (load, 2),
    "parameters in other memory": (move, 2),
}


def assert_followed(name: str, graphed: Twin, eager: Twin) -> None:
    """Compares the updates before and after the change ``name``."""
    assert_equal(graphed.run(), eager.run())
    for twin in (graphed, eager):
        CHANGES[name][0](twin)
    assert_equal(graphed.run(), eager.run())


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_updates_is_followed(graphs: list[Any], name: str) -> None:
    assert_followed(name, Twin(True), Twin(False))
    assert len(graphs) == CHANGES[name][1]


def test_target_copies_and_a_clip_stand_where_they_do_in_eager(graphs: list[Any]) -> None:
    options = {"target": lambda loss: HardTargetUpdate(loss, period_updates=2), "max_grad_norm": 0.05}
    assert_equal(Twin(True, **options).run(7), Twin(False, **options).run(7))
    assert len(graphs) == 1


@pytest.mark.parametrize("adam", [AdamW, FlatRAdam])
def test_other_optimizers(graphs: list[Any], adam: Any) -> None:
    assert_equal(Twin(True, adam=adam, max_grad_norm=0.05).run(9), Twin(False, adam=adam, max_grad_norm=0.05).run(9))
    assert len(graphs) == 1


def test_a_minibatch_of_expanded_tensors() -> None:
    found = []
    for twin in (Twin(True), Twin(False)):
        data = minibatch()
        data["next", "reward"] = torch.ones(1, 1).expand(10, 1)
        torch.manual_seed(0)
        found.append([dict(twin.update(data)), dict(twin.loss.state_dict())])
    assert_equal(*found)


def test_random_numbers_are_those_of_eager() -> None:
    """Of noisy layers, of dropout (above), and of quantile fractions; as many are drawn."""
    noisy = lambda: nn.Sequential(NoisyLinear(3, 8), nn.ReLU(), NoisyLinear(8, 2))  # noqa: E731
    assert_equal(Twin(True, net=noisy).run(), Twin(False, net=noisy).run())
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        net = ImplicitQuantileNetwork(nn.Linear(3, 8), num_features=8, num_actions=2, num_cells=8)
        actor = QuantileQActor(net, spec=Categorical(2))
        loss = MunchausenIQNLoss(actor).make_value_estimator(gamma=0.9)
        HardTargetUpdate(loss, period_updates=2)
        update = make_update(loss, Adam(loss.parameters(), fused=True), compile=compile)
        found.append([update(minibatch())["loss"] for _ in range(3)] + [torch.rand(1)])
    assert_equal(*found)


def test_gradients_of_stacked_losses(graphs: list[Any]) -> None:
    """Of several seeds; what changes is followed, too."""
    torch.manual_seed(0)
    losses = [MunchausenDQNLoss(QValueActor(nn.Linear(3, 2), spec=Categorical(2))) for _ in range(3)]
    for loss in losses:
        HardTargetUpdate(loss, period_updates=2)
    stack = StackedLoss(losses)
    parameters = [stack.parameter(parameter) for parameter in losses[0].parameters()]
    eager, compiled = (_gradients(stack.loss, parameters, compile=compile, bf16=False) for compile in (False, True))
    for tau, diagnostics in ((0.03, True), (0.5, True), (0.5, False)):
        stack.loss.tau, stack.loss.diagnostics = tau, diagnostics
        data = torch.stack([minibatch(seed=seed) for seed in range(3)]).contiguous()
        expected = [dict(eager(data.clone())), [parameter.grad for parameter in parameters]]
        assert_equal([dict(compiled(data.clone())), [parameter.grad for parameter in parameters]], expected)
    assert len(graphs) == 2


class Reading(MunchausenDQNLoss):
    def forward(self, tensordict: Any) -> Any:
        out = super().forward(tensordict)
        out["loss"] = out["loss"] * (2.0 if tensordict["next", "reward"].sum().item() > 0 else 1.0)
        return out


class Ragged(MunchausenDQNLoss):
    def forward(self, tensordict: Any) -> Any:
        out, rewards = super().forward(tensordict), tensordict["next", "reward"]
        out["loss"] = out["loss"] * rewards[rewards > 0].mean()
        return out


class Counting(MunchausenDQNLoss):
    calls = 0

    def forward(self, tensordict: Any) -> Any:
        self.calls += 1
        return super().forward(tensordict)


def listen(loss: Any) -> None:
    loss.value_network.module[0].module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Reading, "it cannot be traced (Python reads a tensor by item())"),
        (Ragged, "it cannot be traced (the shape of a result of aten.index.Tensor depends on values)"),
        (Counting, "the loss changes its own attributes in every call"),
        (MunchausenDQNLoss, "a module of the loss has hooks, which a graph would leave out"),
    ],
)
def test_what_does_not_fit_into_a_graph_is_eager(capsys: Any, cls: Any, reason: str) -> None:
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        loss = cls(QValueActor(nn.Linear(3, 2), spec=Categorical(2))).make_value_estimator(gamma=0.9)
        HardTargetUpdate(loss, period_updates=2)
        if cls is MunchausenDQNLoss:
            listen(loss)
        optimizer, reported = Adam(loss.parameters(), lr=0.1, fused=True), []
        update = make_update(loss, optimizer, compile=compile, report=reported.append)
        found.append([update(minibatch())["loss"].item() for _ in range(4)])
        assert reported == ([True, False] if compile else [False])
    assert capsys.readouterr().err.count(f"run.compile: updates are not compiled: {reason}") == 1
    assert found[0] == found[1]


def test_graphs_without_end_are_given_up(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(graph, "MAX_GRAPHS", 2)
    eager, compiled = Twin(False), Twin(True)
    for rows in (4, 5, 6):
        eager.rows = compiled.rows = rows
        assert_equal(compiled.run(1), eager.run(1))
    assert "shapes, or attributes of the loss, have changed 2 times" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["weight", "loss"])
def test_a_graph_that_differs_from_eager_is_not_used(monkeypatch: Any, capsys: Any, name: str) -> None:
    """Whatever was compiled: here one that leaves out a step, or that returns another loss."""

    def wrong(found: Any, inputs: list[torch.Tensor]) -> Any:
        def run(*given: torch.Tensor) -> Any:
            first, kept = given[0], given[0].clone()
            results = found(*given)
            if name == "weight":
                first.copy_(kept)
                return results
            return [results[0] + 0.1, *results[1:]]

        return run

    monkeypatch.setattr(graph, "compile_trace", wrong)
    assert_equal(Twin(True).run(), Twin(False).run())
    assert "in eager PyTorch" in (err := capsys.readouterr().err) or "from that of eager PyTorch" in err
