"""Rollouts in minibatches: every row once an epoch, each epoch in another order, rates and counts as published."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_dqn
import torch
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import RolloutLearner, RolloutLearning, Run, RunSettings, UserError
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.objectives import QLearningLoss

SMALL: dict[str, Any] = {"total_frames": 96, "num_envs": 2, "collect_steps": 16, "epochs": 3, "batch_size": 8}


def made(path: Path, lmbda: float = 0.5, **options: Any) -> tuple[RolloutLearner, EGreedyModule, Any]:
    """The learner, its exploration, and a function that gives its rollouts."""
    algo = RolloutLearning(**SMALL | options)
    run = Run(tiny_dqn.Config(run=RunSettings(dir=str(path / "run"), progress=False)))
    env = make_env(EnvSettings("cartpole"), algo.num_envs)
    spec = env.full_action_spec_unbatched["action"]
    torch.manual_seed(0)
    actor = QValueActor(q_network(NetSettings(num_cells=[8]), env), spec=spec)
    loss = QLearningLoss(actor, delay_value=False).make_value_estimator("regularized_qlambda", gamma=0.9, lmbda=lmbda)
    egreedy = EGreedyModule(spec, eps_init=1.0, eps_end=0.1)
    learner = RolloutLearner(run, algo, loss, egreedy)
    return learner, egreedy, partial(learner.collect, env, TensorDictSequential(actor, egreedy))


def collected(path: Path, **options: Any) -> tuple[RolloutLearner, list[torch.Tensor], list[float]]:
    """The learner, the targets ``[epochs, 32]`` of each rollout, and its first and last learning rate."""
    learner, _, collect = made(path, **options)
    run, targets, ends = learner.run, [], []
    for batch in collect():
        values, rates = [], []
        batch["next", "reward"].mul_(2)
        learner.store(batch)
        for minibatch in learner.minibatches():
            values.append(minibatch["value_target"].squeeze(-1))
            rates.append(learner.optimizer.param_groups[0]["lr"])
            run.record(learner.update(minibatch))
        targets.append(torch.stack(values).reshape(3, 32))
        ends += [rates[0], rates[-1]]
    return learner, targets, ends


@pytest.mark.parametrize(
    ("by", "expected"), [("rollout", [36, 36, 24, 24, 12, 12]), ("update", [36, 25, 24, 13, 12, 1])]
)
def test_an_epoch_is_a_permutation_of_the_rows_and_rates_fall(tmp_path: Path, by: str, expected: list[float]) -> None:
    learner, targets, ends = collected(tmp_path, anneal_by=by, learning_rate=0.36)
    assert ends == pytest.approx([value / 100 for value in expected])
    assert len(targets) == 3 and learner.run.updates == 36  # 3 epochs of 32 rows in eights
    first, *others = targets[1]
    for one in others:
        torch.testing.assert_close(one.sort().values, first.sort().values, rtol=0, atol=0)
        assert not torch.equal(one, first)


@pytest.mark.parametrize("by", ["rollout", "update"])
def test_a_rate_that_is_not_annealed_stays(tmp_path: Path, by: str) -> None:
    _, _, ends = collected(tmp_path, anneal_by=by, anneal_learning_rate=False, learning_rate=0.36)
    assert ends == [0.36] * 6


def test_the_rate_stays_positive_where_the_last_rollout_goes_beyond_the_run(tmp_path: Path) -> None:
    """Two rollouts of 32 frames, 24 updates; one and a half rollouts would be 18, and one 12."""
    _, _, ends = collected(tmp_path, anneal_by="update", total_frames=48, learning_rate=0.24)
    assert ends == pytest.approx([0.24, 0.13, 0.12, 0.01])


def test_epsilon_is_annealed_over_its_own_frames(tmp_path: Path) -> None:
    _, egreedy, collect = made(tmp_path, eps_frames=64, eps_end=0.1)
    assert [egreedy.eps.item() for _ in collect()] == pytest.approx([1.0, 0.55, 0.1])


@pytest.mark.parametrize("most", [0.01, 1e9])
def test_gradients_are_clipped(tmp_path: Path, most: float) -> None:
    """RAdam's first step is the rate times the gradient."""
    learner, _, collect = made(
        tmp_path, batch_size=32, max_grad_norm=most, learning_rate=0.5, anneal_learning_rate=False
    )
    parameters = list(learner.loss.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    learner.store(next(collect()))
    norm = learner.update(next(learner.minibatches()))["grad_norm"]
    step = nn.utils.get_total_norm([new.detach() - old for new, old in zip(parameters, before, strict=True)])
    assert norm > 0.05 and step.item() == pytest.approx(0.5 * min(most, norm.item()), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "reward"), [({}, 2.0), ({"reward_scale": 0.7, "clip_rewards": True}, 0.7), ({"reward_scale": 3.0}, 6.0)]
)
def test_rewards_are_scaled_for_learning_alone(tmp_path: Path, options: dict[str, Any], reward: float) -> None:
    """The smallest target is the reward at the end of an episode."""
    learner, targets, _ = collected(tmp_path, lmbda=1.0, total_frames=32, learning_rate=1e-9, **options)
    assert targets[0].min() == pytest.approx(reward, rel=1e-5)
    assert all(value == int(value) for value in learner.run._logger._returns)


def test_rows_that_do_not_fill_minibatches_are_refused() -> None:
    with pytest.raises(UserError, match="algo.batch_size must be a divisor of the 32 rows, got 10"):
        RolloutLearning(**SMALL | {"batch_size": 10}).validate()
