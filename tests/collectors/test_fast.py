"""The fast collector's batches equal those of TorchRL's, bit for bit; unsupported environments are refused."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, RewardScaling, RewardSum, StepCounter, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.collectors import FastCollector, fast_vector
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.run.collection import make_collector
from torchrl_reg.modules import (
    ActionPrior,
    ActorSequential,
    BoltzmannQActor,
    CategoricalQActor,
    EpsilonGreedyModule,
    FixedQuantileQActor,
    NetSettings,
    PolicySettings,
    PriorEGreedyModule,
    QActor,
    QuantileQActor,
    acting,
    policy,
    q_network,
    quantile_network,
)

CPU = torch.device("cpu")
CARTPOLE = EnvSettings("cartpole", max_episode_frames=21)
PENDULUM = EnvSettings("pendulum", max_episode_frames=7)
MINATAR = EnvSettings("minatar", game="breakout", max_episode_frames=30)
BOXES = ("multicategorical", "autoregressive", "flow", "gaussian", "sampler")


def pointing_left(state):
    """A function of any tensordict."""
    assert not state["done"].any() and state.shape == (3,)
    return state.set("action", (state["observation"][:, 0] + state["episode_reward"][:, 0] > 9).long())


def with_outputs(env, size):
    return torch.nn.Linear(env.observation_spec["observation"].shape[-1], size)


def q_actor(env, kind):
    spec = env.full_action_spec_unbatched["action"]
    settings = NetSettings("mlp" if len(env.observation_spec["observation"].shape) == 2 else "minatar", num_cells=[16])
    if kind == "quantiles":
        return QuantileQActor(quantile_network(settings, env), spec=spec)
    if kind == "atoms":
        return CategoricalQActor(with_outputs(env, 11 * spec.n), num_atoms=11, spec=spec)
    if kind == "fixed":
        return FixedQuantileQActor(with_outputs(env, 7 * spec.n), num_quantiles=7, spec=spec)
    return (QValueActor if kind == "torchrl" else QActor)(q_network(settings, env), spec=spec)


def policy_of(env, kind):
    if kind in BOXES:
        return policy(PolicySettings(name=kind, num_cells=[16]), env)
    if kind == "function":
        return pointing_left
    actor, spec = q_actor(env, kind), env.full_action_spec_unbatched["action"]
    if kind == "greedy":
        return actor
    if kind == "boltzmann":
        return BoltzmannQActor(actor, tau=0.5)
    if kind == "prior":
        return ActorSequential(actor, PriorEGreedyModule(spec, ActionPrior(spec.n, beta=2.0), eps_init=0.4))
    if kind == "torchrl":
        return TensorDictSequential(actor, EGreedyModule(spec, eps_init=0.4, eps_end=0.1))
    return ActorSequential(actor, EpsilonGreedyModule(spec, eps_init=0.4, eps_end=0.1))


def batches(settings, kind, collector, num_envs, count=12):
    torch.manual_seed(0)
    env = make_env(settings, num_envs)
    options = {"device": CPU, "storing_device": CPU, "track_trajectories": False, "kind": collector}
    made = make_collector(env, policy_of(env, kind), frames_per_batch=4 * num_envs, frames_per_step=1, **options)
    made.env.set_seed(5)
    torch.manual_seed(6)
    made.reset()
    iterator = iter(made)
    found = [next(iterator).clone() for _ in range(count)]
    made.shutdown()
    return type(made), found


@pytest.mark.parametrize(
    ("settings", "kind", "num_envs"),
    [
        *[(CARTPOLE, kind, 3) for kind in ("greedy", "boltzmann", "prior", "quantiles", "atoms", "fixed", "function")],
        *[(CARTPOLE, "epsilon", 3), (CARTPOLE, "epsilon", 1), (MINATAR, "epsilon", 3), (CARTPOLE, "torchrl", 3)],
        *[(PENDULUM, kind, 3) for kind in BOXES],
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_batches_are_those_of_the_reference(settings, kind, num_envs, monkeypatch):
    """TorchRL's modules for epsilon-greedy exploration draw the same numbers as ours."""
    reference, expected = batches(settings, "torchrl" if kind == "epsilon" else kind, "torchrl", num_envs)
    if kind not in ("gaussian", "function", "torchrl"):  # the others do without a tensordict at each step
        monkeypatch.setattr(acting, "act_through_tensordict", lambda module, _: pytest.fail(f"{type(module).__name__}"))
    fast, found = batches(settings, kind, "fast", num_envs)
    assert (reference, fast) == (Collector, FastCollector)
    assert sum(batch["next", "done"].sum() for batch in expected) >= num_envs
    for one, other in zip(expected, found, strict=True):
        assert set(one.keys(True, True)) == set(other.keys(True, True))
        for key in one.keys(True, True):
            assert one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]), key
        assert one.batch_size == other.batch_size and one.device == other.device


@pytest.fixture
def env():
    return make_env(CARTPOLE, 3)


def test_it_is_a_collector_of_ones_own_script(env):
    collector = FastCollector(env, policy_of(env, "greedy"), frames_per_batch=12, total_frames=30)
    assert [batch.batch_size for batch in collector] == [(3, 4)] * 3  # until 30 are reached, as in TorchRL
    collector.shutdown()
    collector.shutdown()
    assert collector.closed and env.is_closed


def test_batches_keep_their_numbers_when_collection_goes_on():
    env = make_env(MINATAR, 3)
    iterator = iter(FastCollector(env, policy_of(env, "epsilon"), frames_per_batch=12))
    first = next(iterator)
    kept = first.clone()
    first["next", "reward"].fill_(7.0)  # a recipe that clips rewards writes into its batch
    second = next(iterator)
    assert (first.exclude(("next", "reward")) == kept.exclude(("next", "reward"))).all()
    assert not (second["next", "reward"] == 7).any()


def test_what_is_carried_is_a_copy_and_ends_with_a_reset(env):
    collector = FastCollector(env, policy_of(env, "greedy"), frames_per_batch=6)
    last = collector.rollout()["next"][:, -1]
    carried = collector.carried
    assert (last["episode_reward"] == 2).all()
    assert (carried == last.select("observation", "episode_reward")).all()
    kept = carried.clone()
    carried.zero_()
    assert (collector.carried == kept).all()
    collector.carried = (given := 2 * kept)
    given.zero_()
    assert (collector.carried == 2 * kept).all()
    collector.reset()
    assert (collector.rollout()["episode_reward"][:, 0] == 0).all()


def test_flags_that_the_policy_writes_are_those_of_their_step(env):
    def act(state):
        steps.append(len(steps))
        flag = torch.full((3, 1), len(steps) == 2)
        return state.set("action", torch.ones(3).long()).set("truncated", flag if flag.any() else state["truncated"])

    steps = []
    batch = FastCollector(env, act, frames_per_batch=12).rollout()
    assert batch["truncated"][..., 0].tolist() == [[False, True, False, False]] * 3
    assert not batch["next", "truncated"].any() and not batch["done"].any()


def test_what_has_to_be_stepped_by_torchrl(env):
    assert fast_vector(env) is not None
    for other in (
        GymEnv("CartPole-v1"),
        make_env(EnvSettings("gridworld", game="square"), 3),
        TransformedEnv(make_env(CARTPOLE, 3), StepCounter(), auto_unwrap=False),
        TransformedEnv(make_env(CARTPOLE, 3), RewardScaling(0.0, 2.0), auto_unwrap=False),
        env.base_env,  # no returns
        TransformedEnv(make_env(CARTPOLE, 3), RewardSum(), auto_unwrap=False),  # in the place of the other's
        TransformedEnv(make_env(CARTPOLE, 3).base_env, RewardSum(["reward"], ["earned"])),
    ):
        assert fast_vector(other) is None
    with pytest.raises(ValueError, match="env must be a gymnasium vector environment under RewardSum alone"):
        FastCollector(GymEnv("CartPole-v1"), lambda td: td, frames_per_batch=3)
    for frames in (0, -3, 4):
        with pytest.raises(ValueError, match=rf"frames_per_batch must be a positive multiple of 3, got {frames}"):
            FastCollector(env, policy_of(env, "greedy"), frames_per_batch=frames)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_hooks_that_come_and_go_are_heard_from_the_next_batch_on(env, hook, part):
    """A module that does more than its plain form is called with a tensordict."""
    policy, called = policy_of(env, "epsilon"), []
    module = (policy, policy[0], policy[0].module[0])[part]
    collector = FastCollector(env, policy, frames_per_batch=6)
    collector.rollout()
    handle = getattr(module, hook)(lambda *_: called.append(True))
    assert collector.rollout()["action_value"].shape == (3, 2, 2)
    assert len(called) == 2
    handle.remove()
    collector.rollout()
    assert len(called) == 2
