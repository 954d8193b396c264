"""Batches of collectors that share one stacked network equal those of separate collectors, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictSequential
from torchrl.data import Categorical
from torchrl.objectives import HardUpdate

from torchrl_reg import modules
from torchrl_reg.collectors import FastCollector
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab.seeds.batched_collection import StackedCollector, drawing
from torchrl_reg.modules import ActorSequential, BoltzmannQActor, EpsilonGreedyModule, NetSettings, QActor, q_network
from torchrl_reg.objectives import SoftDQNLoss
from torchrl_reg.objectives.stacked import StackedLoss
from torchrl_reg.regularizers import Entropy

SETTINGS = {
    "mlp": EnvSettings("cartpole", max_episode_frames=9),
    "minatar": EnvSettings("minatar", game="breakout", max_episode_frames=9),
}


def collector(seed: int, epsilon: float = 0.4, net: str = "mlp") -> FastCollector:
    env = make_env(SETTINGS[net], num_envs=3)
    env.set_seed(seed)
    torch.manual_seed(seed)
    spec = env.full_action_spec_unbatched["action"]
    actor = QActor(q_network(NetSettings(net, num_cells=[16]), env), spec=spec)
    policy = ActorSequential(actor, EpsilonGreedyModule(spec, eps_init=epsilon, eps_end=epsilon))
    return FastCollector(env, policy, frames_per_batch=15)


def stack(collectors: list[FastCollector]) -> StackedLoss:
    losses = [SoftDQNLoss(collector.policy[0], tau=0.5) for collector in collectors]
    for loss in losses:
        HardUpdate(loss, value_network_update_interval=5)
    return StackedLoss(losses)


@pytest.mark.parametrize("net", SETTINGS)
def test_the_batches_of_each(net: str) -> None:
    alone, together = ([collector(seed, 0.2 * seed, net) for seed in range(1, 4)] for _ in range(2))
    stacked, ended = StackedCollector(together, stack(together).parameter), 0
    for batch in range(3):
        expected, drawn = [], []
        for seed, (one, other) in enumerate(zip(alone, together, strict=True)):
            torch.manual_seed(10 * batch + seed)
            expected.append(one.rollout())
            state = torch.get_rng_state()
            torch.manual_seed(10 * batch + seed)
            drawn.append(drawing(other)())
            assert torch.equal(torch.get_rng_state(), state)
        for found, wanted in zip(stacked.batches(drawn).split(3), expected, strict=True):
            ended += int(wanted["next", "done"].sum())
            summed = ("action_value", "chosen_action_value")  # in another order
            torch.testing.assert_close(found.select(*summed).to_dict(), wanted.select(*summed).to_dict())
            exact = [each.exclude(*summed).to_dict() for each in (found, wanted)]
            torch.testing.assert_close(*exact, rtol=0, atol=0)
        assert all((one.carried == other.carried).all() for one, other in zip(alone, together, strict=True))
    assert ended >= 9


HOOKS = {
    f"{hook} of the {part}": (hook, part)
    for hook in ("register_forward_hook", "register_forward_pre_hook")
    for part in ("network", "layer", "greedy", "exploration")
}


class Inverted(QActor):
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return super().forward(tensordict).apply(torch.neg)


def other(name: str, actor: QActor, exploration: EpsilonGreedyModule) -> Any:
    spec, made = Categorical(2), modules.quantile_network(NetSettings(num_cells=[16]), make_env(SETTINGS["mlp"], 1))
    return {
        "function": lambda: lambda state: state,
        "greedy": lambda: actor,
        "boltzmann": lambda: BoltzmannQActor(actor, regularizer=Entropy(0.5)),
        "quantiles": lambda: ActorSequential(modules.QuantileQActor(made, spec=spec), exploration),
        "prior": lambda: ActorSequential(actor, modules.PriorEGreedyModule(spec, modules.ActionPrior(2))),
        "torchrl": lambda: TensorDictSequential(actor, exploration),
        "masked": lambda: ActorSequential(actor, EpsilonGreedyModule(spec, action_mask_key="mask")),
        "own forward": lambda: ActorSequential(Inverted(actor.network, spec=spec), exploration),
    }[name]()


OTHERS = ["function", "greedy", "boltzmann", "quantiles", "prior", "torchrl", "masked", "own forward"]


@pytest.mark.parametrize("name", [*OTHERS, *HOOKS])
def test_other_policies_and_those_with_hooks_are_refused(name: str) -> None:
    """The stacked network would bypass their forward passes and hooks."""
    made = collector(0)
    actor, exploration = made.policy
    network, greedy = actor.module
    parts = {"network": network, "layer": network.module[0], "greedy": greedy, "exploration": exploration}
    if name in HOOKS:
        hook, part = HOOKS[name]
        getattr(parts[part], hook)(lambda *_: None)
    else:
        made.policy = other(name, actor, exploration)
    with pytest.raises(ValueError, match="policy must be epsilon-greedy in a Q-network, without masks"):
        drawing(made)


def test_hooks_put_on_later_end_the_collection_of_all() -> None:
    collectors = [collector(seed) for seed in range(2)]
    with pytest.raises(ValueError, match="parameter must be one of the losses' networks"):
        StackedCollector(collectors, stack([collector(2)]).parameter)
    stacked = StackedCollector(collectors, stack(collectors).parameter)
    stacked.batches([drawing(each)() for each in collectors])
    draws = [drawing(each)() for each in collectors]
    collectors[1].policy[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="without masks or hooks"):
        stacked.batches(draws)
