"""Rollouts in minibatches: every row once an epoch, each epoch in another order, rates and counts as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_dqn
import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.objectives import QLearningLoss
from torchrl_reg.training import ConfigError, RolloutLearner, RolloutLearning, Run, RunSettings

SMALL: dict[str, Any] = {"total_frames": 96, "num_envs": 2, "collect_steps": 16, "epochs": 3, "batch_size": 8}


def collected(path: Path, **options: Any) -> tuple[RolloutLearner, list[list[Any]], list[list[float]]]:
    """The learner, the minibatches of each rollout, and the learning rate at each of them."""
    algo = RolloutLearning(**SMALL | options)
    run = Run(tiny_dqn.Config(run=RunSettings(dir=str(path / "run"), progress=False)))
    env = make_env(EnvSettings("cartpole"), algo.num_envs)
    spec = env.full_action_spec_unbatched["action"]
    actor = QValueActor(q_network(NetSettings(num_cells=[8]), env), spec=spec)
    loss = QLearningLoss(actor, delay_value=False).make_value_estimator("regularized_qlambda", gamma=0.9, lmbda=0.5)
    egreedy = EGreedyModule(spec, eps_init=1.0, eps_end=0.1)
    learner = RolloutLearner(run, algo, loss, egreedy)
    batches: list[list[Any]] = []
    rates: list[list[float]] = []
    for batch in learner.collect(env, TensorDictSequential(actor, egreedy)):
        batches.append([])
        rates.append([])
        for minibatch in learner.minibatches(batch):
            batches[-1].append(minibatch)
            rates[-1].append(learner.optimizer.param_groups[0]["lr"])
            run.record(learner.update(minibatch))
    return learner, batches, rates


def test_an_epoch_is_a_permutation_of_the_rows(tmp_path: Path) -> None:
    _, batches, _ = collected(tmp_path)
    assert [len(minibatches) for minibatches in batches] == [12, 12, 12]  # 3 epochs of 32 rows in eights
    epochs = [torch.cat([m["value_target"] for m in batches[1][i : i + 4]]).flatten() for i in (0, 4, 8)]
    for one in epochs[1:]:
        torch.testing.assert_close(one.sort().values, epochs[0].sort().values, rtol=0, atol=0)
        assert not torch.equal(one, epochs[0])


@pytest.mark.parametrize(
    ("by", "expected"), [("rollout", [36, 36, 24, 24, 12, 12]), ("update", [36, 25, 24, 13, 12, 1])]
)
def test_how_the_learning_rate_falls(tmp_path: Path, by: str, expected: list[float]) -> None:
    learner, _, rates = collected(tmp_path, anneal_by=by, learning_rate=0.36)
    ends = [rate for of_rollout in rates for rate in (of_rollout[0], of_rollout[-1])]
    assert ends == pytest.approx([value / 100 for value in expected])
    assert learner.run.updates == 36


def test_rewards_are_clipped_and_scaled_for_learning_alone(tmp_path: Path) -> None:
    _, plain, _ = collected(tmp_path / "a", learning_rate=1e-9)
    learner, scaled, _ = collected(tmp_path / "b", learning_rate=1e-9, reward_scale=3.0, clip_rewards=True)
    # Two thirds of what is not bootstrapped on more: a reward of 3 in place of 1 at each step.
    assert (
        torch.cat([m["value_target"] for m in scaled[0]]).mean()
        > torch.cat([m["value_target"] for m in plain[0]]).mean() + 1
    )
    row = learner.run._logger
    assert all(value == int(value) for value in row._returns)


def test_rows_that_do_not_fill_minibatches_are_refused() -> None:
    with pytest.raises(ConfigError, match="algo.batch_size must be a divisor of the 32 rows, got 10"):
        RolloutLearning(**SMALL | {"batch_size": 10}).validate()


@pytest.mark.parametrize(
    ("frames", "rows", "epochs", "updates"),
    [(499_712, (32, 64), 4, 15_616), (9_998_336, (128, 32), 2, 156_224), (499_712, (4, 128), 4, 15_616)],
)
def test_published_numbers_of_gradient_steps(frames: int, rows: tuple[int, int], epochs: int, updates: int) -> None:
    assert frames % (rows[0] * rows[1]) == 0
    assert frames // (rows[0] * rows[1]) * epochs * (rows[0] * rows[1] // 128) == updates
