"""Regularizers, networks and actors on the device "sim": see :mod:`test_simulated_device`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import nn
from torch.optim import Adam
from torchrl.data import Categorical
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import EGreedyModule

from tests.house import simulated_device as sim
from tests.objectives import conftest  # noqa: F401  # which lets the tables of losses be imported
from tests.objectives import q_cases as VALUE
from torchrl_reg import modules, regularizers
from torchrl_reg.collectors import plain_policy
from torchrl_reg.modules import ActionPrior
from torchrl_reg.regularizers import Entropy, PriorKL

X = [[1.0, -2.0, 3.0]]


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with sim.watched_device():
        yield


REGULARIZERS = {
    "Boltzmann": lambda: regularizers.Boltzmann(0.5),
    "Entropy": lambda: Entropy(0.5),
    "HardMax": regularizers.HardMax,
    "PriorKL": lambda: PriorKL(prior=ActionPrior(3, probabilities=[0.6, 0.3, 0.1], beta=2.0)),
    "Tsallis": lambda: regularizers.Tsallis(0.5),
    "Tsallis of another q": lambda: regularizers.Tsallis(0.5, q=1.5),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers(name: str) -> None:
    outputs = []
    for where in ("sim", "cpu"):
        with sim.host_may_wait():
            regularizer = REGULARIZERS[name]().to(where)
            q = torch.tensor([*X, *X]).to(where).requires_grad_()
            mask = torch.tensor([[True, False, True], [True, True, True]]).to(where)
        out = regularizer(q, mask=mask)
        (out.pi.square().sum() + out.cost.sum() + out.value.sum()).backward()
        more = [*regularizer.value_and_log_policy(q), regularizer.policy(q), regularizer.greedy(q)]
        more += regularizer.diagnostics(q, more[1], reference=more[1]).values()
        outputs.append([*out, *more, q.grad, regularizer.step_cost(more[1])])
    sim.agree(*outputs)


def test_every_regularizer_is_among_them() -> None:
    public = {name: getattr(regularizers, name) for name in regularizers.__all__}
    kinds = {n for n, c in public.items() if isinstance(c, type) and issubclass(c, regularizers.Regularizer)}
    assert kinds - {"Regularizer"} <= set(REGULARIZERS)


def test_a_learnt_prior_follows_the_policy() -> None:
    with sim.host_may_wait():
        prior = ActionPrior(3, beta=2.0).to("sim")
        data = TensorDict({"action_value": torch.randn(4, 5, 3), "mask": torch.ones(4, 5).bool()}, [4, 5]).to("sim")
    modules.PriorUpdate(prior, rate=0.1)(data)
    prior.beta = 3.0


BOX = {"low": [-1.0, -2.0], "high": [1.0, 2.0]}


def _explorer(explorer: Any) -> Any:
    return TensorDictSequential(VALUE.CASES["m_dqn"].actor(), explorer)


ACTORS: dict[str, Callable[[str], Any]] = {
    "QValueActor": lambda d: VALUE.CASES["m_dqn"].actor(),
    "QuantileQActor": lambda d: VALUE.CASES["iqn"].actor(),
    "FixedQuantileQActor": lambda d: VALUE.CASES["qr"].actor(),
    "CategoricalQActor": lambda d: VALUE.CASES["c51"].actor(),
    "BoltzmannQActor": lambda d: modules.BoltzmannQActor(VALUE.CASES["m_dqn"].actor(), tau=0.5),
    "PriorEGreedyModule": lambda d: _explorer(
        modules.PriorEGreedyModule(Categorical(3), ActionPrior(3, beta=2.0), 0.5)
    ),
    "QActor": lambda d: modules.QActor(nn.Linear(4, 3), spec=Categorical(3)),
    "EGreedyModule": lambda d: _explorer(EGreedyModule(Categorical(3, device=d), 0.5)),
    "EpsilonGreedyModule": lambda d: _explorer(modules.EpsilonGreedyModule(Categorical(3, device=d), 0.5)),
    "FlowActor": lambda d: modules.FlowActor(nn.Linear(4, 8), 8, num_cells=8, **BOX),
    "StochasticSamplerActor": lambda d: modules.StochasticSamplerActor(nn.Linear(4, 8), 8, **BOX),
    "MulticategoricalActor": lambda d: modules.MulticategoricalActor(nn.Linear(4, 8), num_bins=[3, 5], **BOX),
    "AutoregressiveMulticategoricalActor": lambda d: modules.AutoregressiveMulticategoricalActor(
        nn.Linear(4, 8), 8, num_bins=[3, 5], **BOX
    ),
    "SingleDimensionActor": lambda d: modules.SingleDimensionActor(
        modules.MulticategoricalActor(nn.Linear(4, 5), low=-1.0, high=1.0, num_bins=5)
    ),
    "gaussian_actor": lambda d: modules.gaussian_actor(nn.Linear(4, 4), **BOX),
}


@pytest.mark.parametrize("kind", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
@pytest.mark.parametrize("name", ACTORS)
def test_actors(name: str, kind: Any) -> None:
    """They act in one way on either device; only drawing from probabilities may wait, as the action is read anyway."""
    outputs = []
    for where in ("sim", "cpu"):
        torch.manual_seed(0)
        with sim.host_may_wait():
            actor = ACTORS[name](where).to(where)
            state = VALUE.critic_cases.transitions(6).select("observation").to(where)
            actor(state.clone())  # what is kept for each device is made
            plain = plain_policy(actor)
        torch.manual_seed(1)
        with torch.no_grad(), set_exploration_type(kind), sim.host_may_wait(torch.ops.aten.multinomial):
            acted, by_key = actor(state.clone()), dict(state.items())
            plain(by_key)
        outputs.append([acted["action"], by_key["action"]])
        assert {tensor.device.type for tensor in [*outputs[-1], *acted.values()]} == {where}
    sim.agree(*outputs)


def test_every_actor_is_among_them() -> None:
    assert {name for name in modules.__all__ if name.lower().endswith(("actor", "eedymodule"))} <= set(ACTORS)


@pytest.mark.parametrize(("torso", "size"), [("MinAtarCNN", (10, 10)), ("NatureCNN", (84, 84))])
def test_images(torso: str, size: tuple[int, int]) -> None:
    with sim.host_may_wait():
        network = getattr(modules, torso)(4).to("sim")
        images = torch.zeros(2, 4, *size, dtype=torch.uint8).to("sim")
    network(images).square().sum().backward()
    Adam(network.parameters(), fused=True).step()
    assert network(images[0]).device.type == "sim"
