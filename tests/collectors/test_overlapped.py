"""A collector that is one batch ahead gives what a loop gives in which the policy is one batch older."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, exploration_type, set_exploration_type
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.collectors import FastCollector, OverlappedCollector
from torchrl_reg.collectors.own_generators import OwnGenerators
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, PolicySettings, QuantileQActor, policy, quantile_network
from torchrl_reg.regularizers import Entropy
from torchrl_reg.training.loop.collection import make_collector

STEPS = 5


def environment(kind: str) -> EnvBase:
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
        actor = QValueActor(nn.Linear(4, 2), spec=spec)
    if kind == "boltzmann":
        return BoltzmannQActor(actor, regularizer=Entropy(0.5))
    return TensorDictSequential(actor, EGreedyModule(spec, eps_init=0.4, eps_end=0.4))


def learn(actor: nn.Module) -> None:
    """Whatever changes between two batches."""
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.mul_(1.3).add_(0.05)
    for module in actor.modules():
        if isinstance(module, EGreedyModule):
            module.eps.mul_(0.8)
        if isinstance(module, BoltzmannQActor):
            module.regularizer.tau = 0.7 * module.regularizer.tau


def one_batch_older(kind: str, batches: int) -> Iterator[TensorDictBase]:
    env = environment(kind)
    learning = acting(kind, env)
    collector = FastCollector(env, copy.deepcopy(learning), frames_per_batch=3 * STEPS)
    torch.manual_seed(5)
    older = [copy.deepcopy(learning.state_dict())] * 2
    for _ in range(batches):
        collector.policy.load_state_dict(older.pop(0))
        yield collector.rollout()
        learn(learning)
        older.append(copy.deepcopy(learning.state_dict()))


def overlapped(kind: str, make: Callable[..., Any] | None = None) -> tuple[nn.Module, OverlappedCollector]:
    env = environment(kind)
    learning = acting(kind, env)
    make = make or (lambda actor: FastCollector(env, actor, frames_per_batch=3 * STEPS))
    return learning, OverlappedCollector(learning, make, seed=5)


def assert_same(one: TensorDictBase, other: TensorDictBase) -> None:
    assert set(one.keys(True, True)) == set(other.keys(True, True))
    for key, value in one.items(True, True):
        assert torch.equal(value, other.get(key)), key


@pytest.mark.parametrize("kind", ["epsilon", "boltzmann", "quantiles", "gaussian", "flow"])
def test_the_policy_is_one_batch_older(kind: str) -> None:
    expected = list(one_batch_older(kind, 6))
    learning, collector = overlapped(kind)
    for number, (found, wanted) in enumerate(zip(collector, expected, strict=False)):
        torch.rand(number + 1)  # the learner's random numbers are its own
        time.sleep(0.01 * (number % 3))
        assert_same(found, wanted)
        if number == 5:
            break
        learn(learning)
    collector.shutdown()
    assert sum(int(batch["next", "done"].sum()) for batch in expected) > 3
    assert collector.collector.closed


class Inline(ThreadPoolExecutor):
    """Collects before ``submit`` returns: a thread that is always faster than its caller."""

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call())
        return done


def test_the_copy_is_made_before_its_batch_begins() -> None:
    learning, collector = overlapped("epsilon")
    collector._thread = Inline()
    for found, wanted in zip(collector, one_batch_older("epsilon", 5), strict=False):
        assert_same(found, wanted)
        learn(learning)
    collector.shutdown()


class Mode(nn.Module):
    """Goes right in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x),), int(not self.training))


def test_the_copy_is_in_the_mode_of_the_policy_when_it_was_made() -> None:
    env = environment("epsilon")
    policy = TensorDictModule(Mode(), in_keys=["observation"], out_keys=["action"])
    collector = OverlappedCollector(policy, lambda actor: FastCollector(env, actor, frames_per_batch=3))
    actions, batches = [], iter(collector)
    for training in (False, True, True, False, True):
        actions.append(int(next(batches)["action"].unique()))
        policy.train(training)
    collector.shutdown()
    assert actions == [0, 0, 1, 0, 0]


@pytest.mark.gpu
def test_a_policy_on_a_gpu_is_one_batch_older() -> None:
    def batches(older: bool) -> list[TensorDictBase]:
        env = environment("epsilon")
        learning = acting("epsilon", env).to("cuda")
        sizes = {"frames_per_batch": 3 * STEPS, "policy_device": "cuda", "storing_device": "cuda"}
        if not older:
            collector = OverlappedCollector(learning, lambda actor: FastCollector(env, actor, **sizes), seed=5)
            found = []
            for batch in collector:
                found.append(batch.clone())
                learn(learning)
                if len(found) == 6:
                    collector.shutdown()
                    return found
        collector, states, found = FastCollector(env, copy.deepcopy(learning), **sizes), [], []
        states += [copy.deepcopy(learning.state_dict())] * 2
        with OwnGenerators(seed=5):
            for _ in range(6):
                collector.policy.load_state_dict(states.pop(0))
                found.append(collector.rollout().clone())
                learn(learning)
                states.append(copy.deepcopy(learning.state_dict()))
        return found

    for one, other in zip(batches(older=False), batches(older=True), strict=True):
        assert_same(one, other)


def test_standing_still_changes_nothing() -> None:
    learning, collector = overlapped("epsilon")
    batches = iter(collector)
    for number, wanted in enumerate(one_batch_older("epsilon", 6)):
        collector.runs_ahead = number not in (1, 4)
        assert_same(next(batches), wanted)
        assert (collector._pending is None) == (number in (1, 4))
        learn(learning)
    collector.shutdown()


def test_it_goes_on_from_its_state() -> None:
    expected = list(one_batch_older("epsilon", 6))
    learning, first = overlapped("epsilon")
    first.runs_ahead = False
    batches = iter(first)
    for number in range(3):
        assert_same(next(batches), expected[number])
        learn(learning)
    state, carried = copy.deepcopy(first.state_dict()), first.collector.carried
    other, second = overlapped("epsilon")
    other.load_state_dict(learning.state_dict())
    second.load_state_dict(state)
    second.collector._vector = first.collector._vector  # environments where they were
    second.collector.carried = carried
    for number, found in zip(range(3, 6), second, strict=False):
        assert_same(found, expected[number])
        learn(other)
    second.shutdown()


def test_torchrls_collector_in_the_thread() -> None:
    def build(actor: nn.Module) -> Collector:
        env = environment("epsilon")
        sizes = {"frames_per_batch": 3 * STEPS, "frames_per_step": 1, "track_trajectories": False}
        cpu = torch.device("cpu")
        return make_collector(env, actor, device=cpu, storing_device=cpu, kind="torchrl", **sizes)

    learning, collector = overlapped("epsilon", build)
    assert isinstance(collector.collector, Collector)
    for found, wanted in zip(collector, one_batch_older("epsilon", 3), strict=False):
        assert torch.equal(found["action"], wanted["action"])
        learn(learning)
    collector.shutdown()


SEEN: list[ExplorationType] = []


class Slow(nn.Module):
    """Writes down the exploration type while it acts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            SEEN.append(exploration_type())
            time.sleep(0.0002)
        return torch.ones(len(x), dtype=torch.long)


def test_the_exploration_type_of_each_thread() -> None:
    env = environment("epsilon")
    policy = TensorDictModule(Slow(), in_keys=["observation"], out_keys=["action"])
    collector = OverlappedCollector(policy, lambda actor: FastCollector(env, actor, frames_per_batch=3))
    batches = iter(collector)
    for _ in range(5):
        next(batches)
        for _ in range(20):
            with set_exploration_type(ExplorationType.DETERMINISTIC):  # as each loss of TorchRL does
                time.sleep(0.0002)
                assert exploration_type() == ExplorationType.DETERMINISTIC
        assert exploration_type() is None
    collector.shutdown()
    assert set(SEEN) == {ExplorationType.RANDOM} and len(SEEN) > 200


def test_it_ends_with_its_collector_and_passes_errors_on() -> None:
    def build(actor: nn.Module) -> FastCollector:
        return FastCollector(environment("epsilon"), actor, frames_per_batch=3, total_frames=9)

    assert len(list(overlapped("epsilon", build)[1])) == 3

    def fail(state: TensorDictBase) -> TensorDictBase:
        raise RuntimeError("broken policy")

    broken = TensorDictModule(lambda x: fail(x), in_keys=["observation"], out_keys=["action"])
    env = environment("epsilon")
    collector = OverlappedCollector(broken, lambda actor: FastCollector(env, actor, frames_per_batch=3))
    with pytest.raises(RuntimeError, match="broken policy"):
        next(iter(collector))
    collector.shutdown()
    with pytest.raises(ValueError, match="policy must be a module"):
        OverlappedCollector(fail, build)


DRAWS = {
    "rand": lambda: torch.rand(3),
    "randn": lambda: torch.randn(3, dtype=torch.float64),
    "randint": lambda: torch.randint(5, (4,)),
    "randint from": lambda: torch.randint(2, 9, (4,)),
    "randperm": lambda: torch.randperm(6),
    "normal": lambda: torch.normal(torch.zeros(3), torch.ones(3)),
    "multinomial": lambda: torch.multinomial(torch.tensor([0.2, 0.8]), 5, replacement=True),
    "bernoulli": lambda: torch.bernoulli(torch.full((7,), 0.3)),
    "in place": lambda: torch.empty(3).uniform_() + torch.empty(3).exponential_() + torch.empty(3).normal_(),
    "categorical": lambda: torch.distributions.Categorical(logits=torch.zeros(4)).sample((3,)),
    "gaussian": lambda: torch.distributions.Normal(torch.zeros(3), 1.0).rsample(),
}


@pytest.mark.parametrize("name", DRAWS)
def test_own_generators_draw_the_same_numbers(name: str) -> None:
    torch.manual_seed(11)
    before, expected = torch.get_rng_state(), [DRAWS[name]() for _ in range(2)]
    torch.set_rng_state(before)
    mode = OwnGenerators(seed=11)
    with mode:
        first = DRAWS[name]()
    state = mode.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    resumed = OwnGenerators(seed=0)
    resumed.load_state_dict(state)
    with resumed:
        second = DRAWS[name]()
    assert torch.equal(first, expected[0]) and torch.equal(second, expected[1])


def test_a_given_generator_stays() -> None:
    with OwnGenerators(seed=1):
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(4)))


def test_what_takes_no_generator_is_refused() -> None:
    with OwnGenerators(seed=1), pytest.raises(NotImplementedError, match="take a generator"):
        torch.native_dropout(torch.ones(3), 0.5, True)
