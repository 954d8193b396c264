"""Updates on the device "sim", in a separate process: see :mod:`test_simulated_device`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.optim import Adam
from torchrl.objectives import LossModule

from tests.house import simulated_device as sim
from tests.objectives import conftest  # noqa: F401  # which lets the tables of losses be imported
from tests.objectives import q_cases as VALUE
from tests.objectives import test_slots as SLOTS
from torchrl_reg import objectives
from torchrl_reg.lab.learners import cuda_graph, update
from torchrl_reg.lab.learners.update import make_update
from torchrl_reg.lab.run.metrics import RunningMeans
from torchrl_reg.lab.seeds.batched_update import StackedOptimizer
from torchrl_reg.modules import ActionPrior
from torchrl_reg.objectives import HardTargetUpdate, PolyakTargetUpdate
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.regularizers import BellmanErrorCoefficient, DualCoefficient, Entropy


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with sim.watched_device():
        yield


# -- the simulation detects violations ----------------------------------------------------------------------------

X = [[1.0, -2.0, 3.0]]
PLANTED: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "index": lambda x: [4, 5, 6][x.argmax()],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "nonzero": lambda x: x.nonzero(),
    "rows of a mask": lambda x: x[x > 0],
    "rows of a mask written": lambda x: x.__setitem__(x > 0, x[:, 1:].flatten()),
    "equal": lambda x: torch.equal(x, x),
    "a number sent there": lambda x: torch.tensor(0.5, device=x.device),
    "a new tensor": lambda x: x.new_tensor([0.5]),
    "a tensor sent there": lambda x: torch.ones(3).to(x.device),
    "written from the CPU": lambda x: x.copy_(torch.ones(1, 3)),
    "synchronize": lambda x: TensorDict({"x": torch.ones(3)}, [3]).to(x.device),
    "a tensor on the CPU": lambda x: x + torch.ones(3),
    "a number on the CPU": lambda x: x * torch.tensor(0.5),
    "an index on the CPU": lambda x: x[:, torch.tensor([0, 1])],
    "a parameter given memory on the CPU": lambda x: setattr(x, "data", torch.ones(1, 3)),
    "a stack": lambda x: torch.stack([x, torch.ones(1, 3)]),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_seen(name: str) -> None:
    with sim.host_may_wait():
        x = torch.tensor(X).to("sim")
    with contextlib.suppress(Exception):  # as data_checks suppresses what cannot be read
        PLANTED[name](x)
    assert sim.violations
    sim.violations.clear()


class _Reading(objectives.SoftDQNLoss):
    def _loss_mask(self, tensordict: Any) -> Any:
        tensordict["next", "reward"].mean().item()
        return super()._loss_mask(tensordict)


class _Left(objectives.SoftDQNLoss):
    def _rewards(self, tensordict: Any) -> Tensor:
        return super()._rewards(tensordict) * torch.tensor(2.0)


@pytest.mark.parametrize(("cls", "kind"), [(_Reading, sim.Synchronized), (_Left, sim.OnTwoDevices)])
def test_a_mistake_planted_in_a_loss_is_seen(cls: Any, kind: Any) -> None:
    with pytest.raises(kind):
        run(VALUE.LossCase(cls, {"tau": 0.5}), "sim")
    sim.violations.clear()


# -- losses, regularizers, heads, target updates and the update step ------------------------------------------------


def _cells() -> dict[str, Any]:
    """Each regularizer with each shaping and each head, in 16 of the 64 combinations."""
    heads, cells = list(SLOTS.HEADS), {}
    for i, (name, row) in enumerate(SLOTS.REGULARIZERS.items()):
        for j, (shaping, made) in enumerate(SLOTS.SHAPINGS.items()):
            head, options = SLOTS.HEADS[heads[(i + j) % 4]]
            build = functools.partial(_cell, row[0], made, options)
            cells[f"{name}-{shaping}-{heads[(i + j) % 4]}"] = VALUE.LossCase(build, head=VALUE.CASES[head].head)
    return cells


def _cell(regularizer: Any, shaping: Any, head: Any, actor: Any, **kwargs: Any) -> Any:
    return objectives.QLearningLoss(actor, regularizer=regularizer(), shaping=shaping(), head=head(), **kwargs)


def _with_prior_network(actor: Any, **kwargs: Any) -> Any:
    network = TensorDictModule(nn.Linear(4, 3), ["observation"], ["log_prior"]).to(next(actor.parameters()).device)
    beta = BellmanErrorCoefficient(2.0, rate=0.5, inverse=True)
    prior = ActionPrior(3, probabilities=[0.6, 0.3, 0.1], beta=beta)
    return objectives.MutualInformationDQNLoss(actor, prior=prior, prior_network=network, **kwargs)


def _traced(actor: Any, **kwargs: Any) -> Any:
    return objectives.MunchausenDQNLoss(actor, tau=0.5, alpha=0.5, clip_min=-0.3, **kwargs).make_value_estimator(
        "tdlambda", gamma=0.9, lmbda=0.7
    )


_DUAL = {"target": 0.5, "rises": "below", "name": "tau"}
MORE = {
    "virel_q": VALUE.LossCase(objectives.DiscreteVIRELLoss, {"tau": 0.5, "beta_scale": 0.3}),
    "online": VALUE.LossCase(objectives.QLearningLoss, {"delay_value": False}),
    "dual": VALUE.LossCase(
        lambda actor, **k: objectives.QLearningLoss(actor, regularizer=Entropy(DualCoefficient(0.5, **_DUAL)), **k)
    ),
    "prior_network": VALUE.LossCase(_with_prior_network),
    **_cells(),
}
ROOMS = {"value": VALUE.CASES, "more": MORE, "policy": VALUE.policy_cases.CASES, "critic": VALUE.critic_cases.CASES}
CASES = {f"{room}-{name}": case for room, cases in ROOMS.items() for name, case in cases.items()}


def moved(networks: Any, device: str) -> Any:
    if isinstance(networks, (list, tuple)):
        return [moved(network, device) for network in networks]
    return None if networks is None else networks.to(device)


def made(case: Any, device: str, **kwargs: Any) -> Any:
    """As a recipe does: the networks are on their device before the loss exists, and the loss is not moved."""
    with sim.host_may_wait():
        networks = moved(case.actor() if isinstance(case, VALUE.LossCase) else case.networks(), device)
        if isinstance(case, VALUE.LossCase):
            loss = case.cls(networks, **case.kwargs, **kwargs)
            return loss if loss._value_estimator is not None else loss.make_value_estimator(gamma=0.9)
        return case.loss(networks, perturb=False, **kwargs)


def batches(case: Any, device: str) -> list[TensorDict]:
    """Plain rows; rows with weights; rows of which some do not count (and of several steps each)."""
    torch.manual_seed(2)
    plain, weighted, masked = (case.batch(6, seed=n) for n in (1, 2, 3))
    weighted["priority_weight"] = torch.linspace(0.2, 2.0, weighted.numel()).reshape(weighted.shape)
    masked["collector", "mask"] = (torch.arange(masked.numel()) % 5 > 0).reshape(*masked.shape, 1)
    if isinstance(case, VALUE.LossCase):
        masked["steps_to_next_obs"] = torch.tensor([[1], [2], [3]] * 2)
    with sim.host_may_wait():
        return [batch.to(device) for batch in (plain, weighted, masked)]


def run(case: Any, device: str, hard: bool = True) -> tuple[Any, list[dict[str, Tensor]]]:
    """Three updates and the means of what they return, with diagnostics and without.

    The host may wait for the first, which checks its data. ``hard``: gradients are clipped, and the target is a copy.
    """
    loss, target, wants = made(case, device), None, iter([True, False, True])
    if getattr(loss, "delay_value", True):
        target = HardTargetUpdate(loss, period_updates=2) if hard else PolyakTargetUpdate(loss, rate=0.5)
    update = make_update(
        *(loss, Adam(loss.parameters(), lr=1e-2, fused=True), target),
        device=device,
        max_grad_norm=0.5 if hard else None,
        wants_diagnostics=lambda: next(wants),
    )
    means, out = RunningMeans(), []
    torch.manual_seed(3)
    for number, batch in enumerate(batches(case, device)):
        with sim.host_may_wait() if number == 0 else contextlib.nullcontext():
            out.append(update(batch.copy()))
            means.add(out[-1])
            for coefficient in loss.modules():
                if isinstance(coefficient, BellmanErrorCoefficient):
                    coefficient.observe(out[-1]["loss" if "loss" in out[-1] else "loss_qvalue"])
    with sim.host_may_wait():
        out.append({name: torch.tensor(value) for name, value in means.pop().items()})
    return loss, out


@pytest.mark.parametrize("name", CASES)
def test_updates_are_those_of_the_cpu(name: str) -> None:
    hard = list(CASES).index(name) % 2 == 0
    (loss, found), (of_cpu, expected) = (run(CASES[name], device, hard) for device in ("sim", "cpu"))
    sim.agree([dict(out) for out in found], [dict(out) for out in expected])
    state, theirs = (
        {key: value for key, value in each.state_dict().items() if isinstance(value, Tensor)} for each in (loss, of_cpu)
    )
    assert {tensor.device.type for tensor in state.values()} == {"sim"}
    sim.agree(state, theirs)


def test_every_loss_is_among_them() -> None:
    public = {getattr(objectives, name) for name in objectives.__all__}
    losses = {cls for cls in public if isinstance(cls, type) and issubclass(cls, LossModule)}
    assert losses <= {case.cls for case in CASES.values()} | {objectives.QLearningLoss}


def test_traces_on_sequences() -> None:
    """In TorchRL's loop over steps: its vectorized returns read where the episodes end."""
    case = VALUE.LossCase(_traced)
    values = []
    for where in ("sim", "cpu"):
        loss = made(case, where)
        PolyakTargetUpdate(loss, rate=0.5)
        with sim.host_may_wait():
            data = VALUE.critic_cases.transitions(3, 5).to(where)
        loss.data_checks = "never"
        loss.value_estimator.vectorized = False
        out = loss(data)
        out["loss"].backward()
        values.append(out["loss"].detach())
    sim.agree(*values)


def test_a_minibatch_on_the_cpu_is_moved_without_waiting() -> None:
    loss = made(CASES["value-m_dqn"], "sim")
    loss.data_checks = "never"
    PolyakTargetUpdate(loss, rate=0.5)
    update = make_update(loss, Adam(loss.parameters(), fused=True), device="sim")
    assert update(VALUE.critic_cases.transitions(6))["loss"].device.type == "sim"


def test_a_captured_update_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is captured: here its Python code is run again, where a GPU would repeat kernels."""

    captured = []

    def capture(function: Callable[[], list[Tensor]], _: torch.device) -> tuple[Callable[[], Any], list[Tensor]]:
        captured.append(function)
        found = [tensor.clone() for tensor in function()]
        return lambda: [tensor.copy_(new) for tensor, new in zip(found, function(), strict=True)], found

    monkeypatch.setattr(cuda_graph, "capture", capture)
    monkeypatch.setattr(update, "require_capturable", lambda *_: None)
    out: list[list[Any]] = []
    for where in ("sim", "cpu"):
        loss = made(CASES["value-m_dqn"], where)
        target = PolyakTargetUpdate(loss, rate=0.5)
        optimizer = Adam(loss.parameters(), lr=1e-2, fused=True, capturable=where == "sim")
        step = make_update(loss, optimizer, target, max_grad_norm=0.5, device=where, cudagraphs=where == "sim")
        out.append([])
        for number, batch in enumerate(batches(CASES["value-m_dqn"], where)[:1] * 6):
            optimizer.param_groups[0]["lr"] = 0.01 if number < 4 else 0.005
            with sim.host_may_wait() if number < 2 else contextlib.nullcontext():  # the first, and the capture
                out[-1].append(dict(step(batch.copy())))
    sim.agree(*out)
    assert len(captured) == 1


def test_coefficients_assigned_between_updates() -> None:
    loss = made(CASES["value-m_dqn"], "sim")
    loss.tau, loss.alpha, loss.clip_min = 0.3, 0.4, -0.5
    loss = made(CASES["critic-sac"], "sim")
    loss.tau = 0.2  # by its logarithm
    sim.agree(loss.tau, torch.tensor(0.2))


def test_losses_side_by_side() -> None:
    """The batched step of several seeds."""
    case = CASES["value-m_dqn"]
    losses = [made(case, "sim") for _ in range(3)]
    for loss in losses:
        PolyakTargetUpdate(loss, rate=0.5)
    optimizers = [Adam(loss.parameters(), fused=True) for loss in losses]
    with sim.host_may_wait():
        stack = StackedLoss(losses)
        data = torch.stack([VALUE.critic_cases.transitions(6, seed=n) for n in range(3)]).to("sim")
    step = None
    for _ in range(3):
        stack.loss(data)["loss"].sum().backward()
        for parameters in zip(*[loss.parameters() for loss in losses], strict=True):
            whole = stack.parameter(parameters[0])
            for parameter, gradient in zip(parameters, whole.grad.unbind(), strict=True):
                parameter.grad = gradient
        if step is None:
            for optimizer in optimizers:
                optimizer.step()
            with sim.host_may_wait():
                step = StackedOptimizer.make(optimizers, stack.parameter)
            assert step is not None
        else:
            step.step()
        assert stack.is_current()
