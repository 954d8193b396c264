"""Environments in two processes: batches of one collector, by seed alone, with the weights and the epsilon of now."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.envs import StepCounter, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.collectors import FastCollector, SplitCollector
from torchrl_reg.envs import EnvSettings, make_env


def cartpole(num_envs: int = 4):
    env = make_env(EnvSettings("cartpole"), num_envs)
    spec = env.full_action_spec_unbatched["action"]
    torch.manual_seed(0)
    actor = QValueActor(nn.Linear(4, 2), spec=spec)
    return env, TensorDictSequential(actor, EGreedyModule(spec, eps_init=0.5, eps_end=0.5))


def test_batches_of_two_processes():
    env, policy = cartpole()
    batches_of = iter(collector := SplitCollector(env, policy, processes=2, frames_per_batch=48))

    def batches(seed: int) -> torch.Tensor:
        collector.set_seed(seed)
        collector.reset()
        return torch.cat([next(batches_of) for _ in range(2)], 1)

    found, again, other = (batches(seed) for seed in (3, 3, 4))
    assert found.shape == (4, 24) and (found == again).all() and not (found == other).all()
    env.set_seed(3)
    alone = FastCollector(env, policy, frames_per_batch=48)
    expected = next(iter(alone))
    assert found["observation"][:, 0].equal(expected["observation"][:, 0])  # each environment's seed is its own
    assert set(found.keys(True, True)) == set(expected.keys(True, True))
    before, after = found["next", "observation"][:, :-1], found["observation"][:, 1:]
    goes_on = ~found["next", "done"][:, :-1, 0]
    assert before[goes_on].equal(after[goes_on]) and goes_on.any() and not goes_on.all()
    greedy = found["action"] == found["action_value"].argmax(-1)
    assert greedy.float().mean() < 0.9
    policy[1].eps.zero_()
    with torch.no_grad():
        policy[0].module[0].module.weight.neg_()
    batch = next(batches_of)
    kept = batch.clone()
    assert (batch["action"] == batch["action_value"].argmax(-1)).all()
    torch.testing.assert_close(batch["action_value"], policy[0](batch.select("observation"))["action_value"])
    next(batches_of)
    assert (batch == kept).all()  # not memory that the processes write into
    collector.shutdown()
    alone.shutdown()


def test_what_cannot_be_split():
    env, policy = cartpole()
    with pytest.raises(ValueError, match=r"processes must be a divisor of the 4 environments, got 3\.$"):
        SplitCollector(env, policy, processes=3, frames_per_batch=12)
    for other in (
        env.base_env,
        TransformedEnv(env, StepCounter(), auto_unwrap=False),
        env.append_transform(StepCounter()),
    ):
        with pytest.raises(ValueError, match="env must be an environment of make_env as it is"):
            SplitCollector(other, policy, processes=2, frames_per_batch=12)
