"""A collector that is one batch ahead gives the batches of a loop whose policy is one batch older."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import Categorical
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type

from torchrl_reg.collectors import FastCollector, OverlappedCollector
from torchrl_reg.collectors.local_generators import LocalGenerators
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.run.collection import make_collector
from torchrl_reg.modules import (
    ActorSequential,
    BoltzmannQActor,
    EpsilonGreedyModule,
    NetSettings,
    PolicySettings,
    QActor,
    QuantileQActor,
    policy,
    quantile_network,
)
from torchrl_reg.objectives import MunchausenDQNLoss
from torchrl_reg.regularizers import Entropy

FRAMES = 15  # of a batch: five steps
ON_GPU = {"policy_device": "cuda", "storing_device": "cuda"}


def environment(kind: str = "epsilon") -> EnvBase:
    name = "pendulum" if kind in ("gaussian", "flow") else "cartpole"
    env = make_env(EnvSettings(name, max_episode_frames=9), num_envs=3)
    env.set_seed(3)
    return env


def acting(kind: str, env: EnvBase) -> Any:
    torch.manual_seed(7)
    if kind in ("gaussian", "flow"):
        return policy(PolicySettings(kind, num_cells=[8]), env)
    spec = env.full_action_spec_unbatched["action"]
    if kind == "quantiles":
        actor = QuantileQActor(quantile_network(NetSettings("mlp", num_cells=[8]), env), spec=spec, num_quantiles=3)
    else:
        actor = QActor(nn.Linear(4, 2), spec=spec)
    if kind == "boltzmann":
        return BoltzmannQActor(actor, regularizer=Entropy(0.5))
    return ActorSequential(actor, EpsilonGreedyModule(spec, eps_init=0.4, eps_end=0.4))


def learn(actor: nn.Module) -> None:
    """Whatever changes between two batches."""
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(1.3).add_(0.05)
    for module in actor.modules():
        if isinstance(module, EpsilonGreedyModule):
            module.eps.mul_(0.8)
        if isinstance(module, BoltzmannQActor):
            module.regularizer.tau = 0.7 * module.regularizer.tau


def one_batch_older(kind: str = "epsilon", device: str = "cpu", **devices: str) -> Iterator[TensorDictBase]:
    env = environment(kind)
    learning = acting(kind, env).to(device)
    collector = FastCollector(env, copy.deepcopy(learning), frames_per_batch=FRAMES, **devices)
    draws, older = LocalGenerators(seed=5), [copy.deepcopy(learning.state_dict())] * 2
    while True:
        collector.policy.load_state_dict(older.pop(0))
        with draws:
            batch = collector.rollout().clone()
        yield batch
        learn(learning)
        older.append(copy.deepcopy(learning.state_dict()))


def overlapped(kind: str = "epsilon", device: str = "cpu", **devices: str) -> tuple[nn.Module, OverlappedCollector]:
    env = environment(kind)
    learning = acting(kind, env).to(device)
    make = lambda actor: FastCollector(env, actor, frames_per_batch=FRAMES, **devices)  # noqa: E731
    return learning, OverlappedCollector(learning, make, seed=5)


def assert_same(one: TensorDictBase, other: TensorDictBase) -> None:
    torch.testing.assert_close(one.to_dict(), other.to_dict(), rtol=0, atol=0)


def assert_follows(collector: OverlappedCollector, learning: nn.Module, expected: Iterator[TensorDictBase]) -> int:
    """Six batches are those ``expected``; returns how many episodes ended in them."""
    ended = 0
    for number, found, wanted in zip(range(6), collector, expected, strict=False):
        assert_same(found, wanted)
        ended += int(wanted["next", "done"].sum())
        torch.rand(number + 1)  # the learner's random numbers are its own
        time.sleep(0.01 * (number % 3))
        learn(learning)
    collector.shutdown()
    return ended


@pytest.mark.parametrize("kind", ["epsilon", "boltzmann", "quantiles", "gaussian", "flow"])
def test_the_policy_is_one_batch_older(kind: str) -> None:
    learning, collector = overlapped(kind)
    assert assert_follows(collector, learning, one_batch_older(kind)) > 3
    assert collector.collector.closed


@pytest.mark.gpu
def test_a_policy_on_a_gpu_is_one_batch_older() -> None:
    learning, collector = overlapped(device="cuda", **ON_GPU)
    assert_follows(collector, learning, one_batch_older(device="cuda", **ON_GPU))


class Inline(ThreadPoolExecutor):
    """Collects before ``submit`` returns: a thread that is always faster than its caller."""

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call())
        return done


def test_the_copy_is_made_before_its_batch_begins() -> None:
    learning, collector = overlapped()
    collector._thread = Inline()
    assert_follows(collector, learning, one_batch_older())


def test_torchrls_collector_in_the_thread() -> None:
    def build(actor: nn.Module) -> Collector:
        sizes = {"frames_per_batch": FRAMES, "frames_per_step": 1, "track_trajectories": False}
        cpu = torch.device("cpu")
        return make_collector(environment(), actor, device=cpu, storing_device=cpu, kind="torchrl", **sizes)

    learning = acting("epsilon", environment())
    collector = OverlappedCollector(learning, build, seed=5)
    assert isinstance(collector.collector, Collector)
    assert_follows(collector, learning, (batch.exclude("collector") for batch in one_batch_older()))


class Mode(nn.Module):
    """Goes right in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x),), int(not self.training))


def acting_by(network: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Any, OverlappedCollector]:
    env = environment()
    policy = TensorDictModule(network, in_keys=["observation"], out_keys=["action"])
    return policy, OverlappedCollector(policy, lambda actor: FastCollector(env, actor, frames_per_batch=3))


def test_the_copy_is_in_the_mode_of_the_policy_when_it_was_made() -> None:
    policy, collector = acting_by(Mode())
    actions, batches = [], iter(collector)
    for training in (False, True, True, False, True):
        actions.append(int(next(batches)["action"].unique()))
        policy.train(training)
    collector.shutdown()
    assert actions == [0, 0, 1, 0, 0]


def test_standing_still_changes_nothing_and_is_where_another_goes_on() -> None:
    expected = one_batch_older()
    learning, first = overlapped()
    batches = iter(first)
    for number in range(5):
        first.runs_ahead = number not in (1, 4)
        assert_same(next(batches), next(expected))
        assert (first._pending is None) == (number in (1, 4))
        learn(learning)
    state, carried = copy.deepcopy(first.state_dict()), first.collector.carried
    other, second = overlapped()
    other.load_state_dict(learning.state_dict())
    second.load_state_dict(state)
    second.collector._vector = first.collector._vector  # environments where they were
    second.collector.carried = carried
    assert_follows(second, other, expected)


SEEN: list[ExplorationType] = []


class Slow(nn.Module):
    """Writes down the exploration type while it acts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            SEEN.append(exploration_type())
            time.sleep(0.0002)
        return torch.ones(len(x), dtype=torch.long)


def test_it_explores_while_a_loss_of_ours_is_called() -> None:
    _, collector = acting_by(Slow())
    actor = QActor(nn.Linear(4, 2), spec=Categorical(2))
    loss, batches = MunchausenDQNLoss(actor, delay_value=False), iter(collector)
    for _ in range(5):
        batch = next(batches)
        for _ in range(5):
            loss(batch)
    assert exploration_type() == ExplorationType.RANDOM
    collector.shutdown()
    assert exploration_type() is None
    assert set(SEEN) == {ExplorationType.RANDOM} and len(SEEN) > 200


def test_another_exploration_type_during_a_batch_is_refused() -> None:
    """As a loss of TorchRL sets it, which would make the policy greedy by chance."""
    _, collector = acting_by(Slow())
    batches = iter(collector)
    with pytest.raises(RuntimeError, match="exploration type must stay RANDOM .*, got deterministic: set"):
        for _ in range(2):
            next(batches)
            with set_exploration_type(ExplorationType.DETERMINISTIC):
                collector.wait()
    collector.shutdown()
    assert exploration_type() is None


def test_it_ends_with_its_collector_and_passes_errors_on() -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken policy")

    def nine_frames(actor: nn.Module) -> FastCollector:
        return FastCollector(environment(), actor, frames_per_batch=3, total_frames=9)

    assert len(list(OverlappedCollector(acting("epsilon", environment()), nine_frames))) == 3
    _, collector = acting_by(fail)
    with pytest.raises(RuntimeError, match="broken policy"):
        next(iter(collector))
    collector.shutdown()
    with pytest.raises(ValueError, match="policy must be a module"):
        OverlappedCollector(fail, nine_frames)
