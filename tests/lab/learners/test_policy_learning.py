"""The learner of the recipes for continuous actions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import PolicyLearner, PolicyLearning, UserError


def bare(**attributes: Any) -> PolicyLearner:
    """A learner of which there is nothing but what a test needs."""
    learner = object.__new__(PolicyLearner)
    vars(learner).update(schedules=[], frames_per_batch=8, **attributes)
    return learner


@pytest.mark.parametrize(("sequences", "expected"), [(False, [0, 3, 1, 4, 2, 5]), (True, [[0, 1, 2], [3, 4, 5]])])
def test_rows_are_stored_in_order_of_time_or_as_sequences(sequences: bool, expected: list) -> None:
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(6), batch_size=1)
    rewards = {"reward": torch.full((2, 3, 1), 4.0)}
    batch = TensorDict({"action": torch.arange(6).reshape(2, 3), "unread": torch.ones(2, 3), "next": rewards}, [2, 3])
    loss, algo = SimpleNamespace(in_keys=["action", ("next", "reward")]), PolicyLearning(reward_scale=0.5)
    bare(loss=loss, algo=algo, replay=replay, sequences=sequences).store(batch)
    assert replay[:]["action"].tolist() == expected and "unread" not in list(replay[:].keys())
    assert (replay[:]["next", "reward"] == 2).all()


def test_actions_are_uniform_until_learning_starts() -> None:
    torch.manual_seed(0)
    env = make_env(EnvSettings("pendulum"), 2)
    acting: list[Any] = []
    run = SimpleNamespace(frames=0, frames_per_step=1)
    run.collect = lambda env, policy, **_: acting.append(policy) or iter(())
    algo = PolicyLearning(learning_starts_frames=5, random_until_learning=True)
    fixed = TensorDictModule(lambda seen: (torch.full((len(seen), 1), 9.0), seen), ["observation"], ["action", "other"])
    assert list(bare(run=run, algo=algo, loss=SimpleNamespace(in_keys=["action"])).collect(env, fixed)) == []
    (policy,) = acting
    state = env.reset()
    early = torch.stack([policy(state.clone())["action"] for _ in range(2000)])
    assert early.abs().max() <= 2 and abs(early.std() - 4 / 12**0.5) < 0.03 and "other" in policy(state.clone())
    run.frames = 5
    assert (policy(state.clone())["action"] == 9).all()


def test_an_index_of_a_bin_refuses_uniform_actions() -> None:
    algo = PolicyLearning(random_until_learning=True)
    learner = bare(run=None, algo=algo, loss=SimpleNamespace(in_keys=["action_index"]))
    with pytest.raises(UserError, match=r"^algo\.random_until_learning must be false where the loss reads the index"):
        learner.collect(None, None)
