"""Collectors that act as one stacked network give the batches that each would have given, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import HardUpdate

from torchrl_reg.collectors import FastCollector
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import SoftDQNLoss
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.regularizers import Entropy
from torchrl_reg.training.seeds.batched_collection import StackedCollector, drawing

SETTINGS = {
    "vectors": (EnvSettings("cartpole", max_episode_frames=9), NetSettings("mlp", num_cells=[16])),
    "images": (EnvSettings("minatar", game="breakout", max_episode_frames=9), NetSettings("minatar", num_cells=[16])),
}


def collector(kind: str, seed: int, epsilon: float = 0.4) -> FastCollector:
    settings, net = SETTINGS[kind]
    env = make_env(settings, num_envs=3)
    env.set_seed(seed)
    torch.manual_seed(seed)
    spec = env.full_action_spec_unbatched["action"]
    actor = QValueActor(q_network(net, env), spec=spec)
    policy = TensorDictSequential(actor, EGreedyModule(spec, eps_init=epsilon, eps_end=epsilon))
    return FastCollector(env, policy, frames_per_batch=15)


def stack(collectors: list[FastCollector]) -> StackedLoss:
    losses = [SoftDQNLoss(collector.policy[0], tau=0.5) for collector in collectors]
    for loss in losses:
        HardUpdate(loss, value_network_update_interval=5)
    return StackedLoss(losses)


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_batches_of_each(kind: str) -> None:
    alone, together = ([collector(kind, seed, 0.2 * seed) for seed in range(1, 4)] for _ in range(2))
    stacked, ended = StackedCollector(together, stack(together).parameter), 0
    for batch in range(3):
        expected, states = [], []
        for seed, each in enumerate(alone):
            torch.manual_seed(10 * batch + seed)
            expected.append(each.rollout())
            states.append(torch.get_rng_state())
        drawn = []
        for seed, each in enumerate(together):
            torch.manual_seed(10 * batch + seed)
            drawn.append(drawing(each)())
            assert torch.equal(torch.get_rng_state(), states[seed])
        found = stacked.batches(drawn).split(3)
        ended += sum(int(rows["next", "done"].sum()) for rows in found)
        for one, other, mine, theirs in zip(found, expected, together, alone, strict=True):
            assert set(one.keys(True, True)) == set(other.keys(True, True))
            exact = {"action_value", "chosen_action_value"}  # summed in another order
            for key, value in other.items(True, True):
                assert one.get(key).dtype == value.dtype
                close = torch.allclose if key in exact else torch.equal
                assert close(one.get(key), value), key
            assert (mine.carried == theirs.carried).all()
    assert ended >= 9


def refused(policy: Any) -> FastCollector:
    made = collector("vectors", 0)
    made.policy = policy(made.policy)
    return made


@pytest.mark.parametrize(
    "policy", [lambda policy: policy[0], lambda policy: BoltzmannQActor(policy[0], regularizer=Entropy(0.5))]
)
def test_other_policies_are_refused(policy: Any) -> None:
    with pytest.raises(ValueError, match="policy must be epsilon-greedy in a Q-network"):
        drawing(refused(policy))


def test_networks_that_are_not_stacked_are_refused() -> None:
    collectors = [collector("vectors", seed) for seed in range(2)]
    with pytest.raises(ValueError, match="parameter must be one of the losses' networks"):
        StackedCollector(collectors, stack([collector("vectors", 2)]).parameter)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("part", ["network", "layer", "greedy", "exploration"])
def test_policies_with_hooks_are_refused(part: str, hook: str) -> None:
    """What acts as one network calls none of theirs."""
    made = collector("vectors", 0)
    actor, exploration = made.policy
    network, greedy = actor.module
    parts = {"network": network, "layer": network.module[0], "greedy": greedy, "exploration": exploration}
    getattr(parts[part], hook)(lambda *_: None)
    with pytest.raises(ValueError, match="policy must be epsilon-greedy in a Q-network of one observation, without"):
        drawing(made)


def test_hooks_put_on_later_end_the_collection_of_all() -> None:
    collectors = [collector("vectors", seed) for seed in range(2)]
    stacked = StackedCollector(collectors, stack(collectors).parameter)
    stacked.batches([drawing(each)() for each in collectors])
    draws = [drawing(each)() for each in collectors]
    collectors[1].policy[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without hooks"):
        stacked.batches(draws)
