"""Updates as a CUDA graph, without a GPU: a trace stands for the capture, and repeats operations without Python."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler

from tests.lab.learners import test_graph
from tests.lab.learners.test_graph import CHANGES, Twin, assert_equal, assert_followed, minibatch, network
from torchrl_reg.compat import trace
from torchrl_reg.lab.learners import cuda_graph, update
from torchrl_reg.lab.learners.optimizers import make_optimizer
from torchrl_reg.objectives import HardTargetUpdate

graphs = test_graph.graphs  # a fixture


def capturable(name: str) -> Callable[..., Optimizer]:
    """For ``Twin(adam=)``."""
    settings = {"eps": 1e-5, "capturable": True}
    return lambda parameters, lr, **_: make_optimizer(name, parameters, learning_rate=lr, **settings)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All captures."""
    made: list[Any] = []

    def capture(function: Callable[[], list[Tensor]], _: torch.device) -> tuple[Callable[[], None], list[Tensor]]:
        for _ in range(2):  # it may be called as often as one likes
            function()
        graph = trace(function, [])
        made.append(graph)
        found = [tensor.clone() for tensor in graph()]

        @torch.no_grad()
        def replay() -> None:
            for tensor, new in zip(found, graph(), strict=True):
                tensor.copy_(new)  # a graph writes where it wrote when it was captured

        return replay, found

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(update, "require_capturable", lambda *_: None)
    return made


def twins(**options: Any) -> tuple[Twin, Twin]:
    """An update that is captured from the second call on, and an eager one."""
    options = {"adam": capturable("adam")} | options
    return Twin(False, cudagraphs=True, **options), Twin(False, **options)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_updates_is_followed(captures: list[Any], name: str) -> None:
    assert_followed(name, *twins())
    assert len(captures) == CHANGES[name][1]


def test_clipped_steps_beside_copied_targets(captures: list[Any]) -> None:
    captured, eager = twins(target=partial(HardTargetUpdate, period_updates=2), max_grad_norm=0.05)
    assert_equal(captured.run(9), eager.run(9))
    assert len(captures) == 1


def test_a_compiled_update(captures: list[Any], graphs: list[Any]) -> None:
    captured = Twin(True, cudagraphs=True, adam=capturable("adam"))
    assert_equal(captured.run(4), Twin(False, adam=capturable("adam")).run(4))
    assert len(captures) == 1
    assert len(graphs) == 1  # of the gradients


def test_minibatches_are_left_alone_and_priorities_come_back(captures: list[Any]) -> None:
    found = []
    for cudagraphs in (True, False):
        sampler = PrioritizedSampler(10, alpha=1.0, beta=0.5)
        replay = TensorDictReplayBuffer(storage=LazyTensorStorage(10), sampler=sampler, batch_size=10)
        replay.extend(minibatch())
        twin = Twin(False, cudagraphs=cudagraphs, adam=capturable("adam"), replay=replay)
        leaves = []
        for seed in range(4):
            torch.manual_seed(seed)
            data = minibatch(seed=seed).set("index", torch.arange(10).roll(seed))
            data["priority_weight"] = torch.linspace(0.5, 1, 10)
            twin.update(data)
            leaves.append(torch.as_tensor(sampler._sum_tree[torch.arange(10)]))
        assert ("td_error" in data) is not cudagraphs  # the last was replayed
        found.append(leaves)
    assert_equal(*found)
    assert len(captures) == 1


def test_the_scalars_of_an_update_are_kept(captures: list[Any]) -> None:
    captured, _ = twins()
    losses = [captured.update(minibatch(seed=seed))["loss"] for seed in range(4)]
    before = [loss.item() for loss in losses]
    captured.update(minibatch(seed=9))
    assert [loss.item() for loss in losses] == before and len(set(before)) == 4


def test_a_run_goes_on_from_a_checkpoint(captures: list[Any]) -> None:
    captured, eager = twins()
    assert_equal(captured.run(), eager.run())
    checkpoint = io.BytesIO()
    torch.save({"loss": captured.loss.state_dict(), "optimizer": captured.optimizer.state_dict()}, checkpoint)
    checkpoint.seek(0)
    states = torch.load(checkpoint)
    resumed, _ = twins()
    resumed.loss.load_state_dict(states["loss"])
    resumed.optimizer.load_state_dict(states["optimizer"])
    resumed.count = captured.count
    for rate in (0.5, 0.25):
        for twin in (resumed, eager):
            twin.optimizer.param_groups[0]["lr"] = rate
        assert_equal(resumed.run(), eager.run())
    assert len(captures) == 2


def test_what_cannot_be_captured_is_eager(captures: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graph, "capture", refuse)
    captured, eager = twins()
    assert_equal(captured.run(), eager.run())
    said = "run.cudagraphs: updates are not captured: it cannot be captured (operation not permitted"
    assert capsys.readouterr().err.count(said) == 1


def test_moments_that_an_update_makes_are_those_of_eager(captures: list[Any]) -> None:
    """Of a parameter that was frozen at first."""
    found = []
    for twin in twins():
        frozen = list(twin.loss.parameters())[1]
        frozen.requires_grad_(False)
        first = twin.run()
        frozen.requires_grad_(True)
        found.append([*first, *twin.run()])
    assert_equal(*found)
    assert len(captures) == 2


@pytest.mark.parametrize("name", ["weight", "loss"])
def test_a_capture_that_differs_from_eager_is_not_used(
    captures: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    capture = cuda_graph.capture
    captured, eager = twins()
    weight = next(captured.loss.parameters())

    def wrong(*given: Any) -> Any:
        replay, found = capture(*given)

        @torch.no_grad()
        def run() -> None:
            replay()
            (weight if name == "weight" else found[0]).add_(0.1)

        return run, found

    monkeypatch.setattr(cuda_graph, "capture", wrong)
    assert_equal(captured.run(), eager.run())
    assert "eager PyTorch" in capsys.readouterr().err


def test_hooks_of_modules_and_of_optimizers_run(captures: list[Any], capsys: Any) -> None:
    captured, eager = twins()
    called: list[Any] = []
    captured.optimizer.register_step_post_hook(lambda *_: called.append(None))
    assert_equal(captured.run(), eager.run())
    assert len(called) == 3 and not captures
    assert capsys.readouterr().err.count("the optimizer has hooks") == 1
    captured, eager = twins()
    captured.loss.value_network.module[0].module.register_forward_hook(lambda *_: called.append(None))
    assert_equal(captured.run(), eager.run())
    assert len(called) > 3 and not captures
    assert "a module of the loss has hooks" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "radam", "rmsprop"])
def test_on_a_gpu(capsys: Any, optimizer: str, compile: bool) -> None:
    """As eager, and without a message that it is not captured."""
    found = []
    for cudagraphs in (False, True):
        options = {"adam": capturable(optimizer), "device": "cuda", "max_grad_norm": 0.5, "cudagraphs": cudagraphs}
        twin = Twin(compile and cudagraphs, net=lambda: network().cuda(), **options)
        found.append([])
        for rate in (0.01, 0.001):
            twin.optimizer.param_groups[0]["lr"] = rate
            for diagnostics in (True, False):
                twin.loss.diagnostics = diagnostics
                found[-1] += twin.run(10)
    assert_equal(*found)
    assert not capsys.readouterr().err
