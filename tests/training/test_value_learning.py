"""What the value-based recipes share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_dqn
from tensordict.nn import TensorDictSequential
from torch.optim.lr_scheduler import StepLR
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate, SoftDQNLoss
from torchrl_reg.training import EpsilonSchedule, LinearSchedule, Run, RunSettings, ValueLearner, ValueLearning


def _parts(algo: ValueLearning, path: Path) -> tuple[Run, Any, QValueActor, EGreedyModule]:
    algo.num_envs, algo.collect_steps, algo.batch_size, algo.replay_capacity = 4, 4, 8, 100
    run = Run(tiny_dqn.Config(run=RunSettings(dir=str(path / "run"), progress=False)))
    env = make_env(EnvSettings("cartpole"), algo.num_envs)
    spec = env.full_action_spec_unbatched["action"]
    actor = QValueActor(q_network(NetSettings(num_cells=[8]), env), spec=spec)
    # .2 for 16 frames
    return run, env, actor, EGreedyModule(spec, eps_init=1.0, eps_end=0.4, annealing_num_steps=48)


@pytest.mark.parametrize(
    ("scheduled", "steps", "expected"),
    [
        (True, False, [1.0, 1.0, 0.86, 0.58, 0.3, 0.3]),  # seen while collecting and learning from each batch
        (False, True, [1.0, 0.8, 0.6, 0.4, 0.4, 0.4]),
        (False, False, [1.0] * 6),
    ],
)
def test_epsilon_follows_the_schedule_given_and_nothing_else(
    tmp_path: Path, scheduled: bool, steps: bool, expected: list[float]
) -> None:
    algo = ValueLearning(total_frames=96, learning_starts_frames=24, eps_frames=40, eps_end=0.3)
    run, env, actor, module = _parts(algo, tmp_path)
    loss = DQNLoss(actor, delay_value=True)
    loss.make_value_estimator(gamma=algo.gamma)
    target = HardTargetUpdate(loss, period_updates=5)
    exploration = EpsilonSchedule(module, algo) if scheduled else module
    learner = ValueLearner(run, algo, loss, target, exploration)
    seen = []
    for batch in learner.collect(env, TensorDictSequential(actor, module)):
        seen.append(module.eps.item())
        learner.remember(batch)
        if steps:
            module.step(16)
    assert seen == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 0.75, 0.5]),
        ({"eps_start": 0.5, "random_until_learning": True}, [1.0, 1.0, 0.5, 0.5, 0.5]),
        ({"eps_starts_frames": 0}, [1.0, 0.75, 0.5, 0.5, 0.5]),
        ({"eps_starts_frames": 0, "random_until_learning": True}, [1.0, 1.0, 0.5, 0.5, 0.5]),
    ],
)
def test_where_epsilon_starts_to_fall(options: dict, expected: list[float]) -> None:
    algo = ValueLearning(learning_starts_frames=20, eps_frames=20, eps_end=0.5, **options)
    module = EGreedyModule(Categorical(2), eps_init=algo.eps_start, eps_end=algo.eps_end)
    schedule, run = EpsilonSchedule(module, algo), SimpleNamespace(frames=0)
    run.annealed = partial(Run.annealed, run)
    seen = [module.eps.item()]
    for run.frames in (10, 20, 30, 40):
        schedule.step(run)
        seen.append(module.eps.item())
    assert seen == pytest.approx(expected)


def test_each_counts_in_its_own_unit_and_takes_the_place_of_those_of_the_settings(tmp_path: Path) -> None:
    algo = ValueLearning(total_frames=96, learning_starts_frames=16, learning_rate=1.0)
    run, env, actor, egreedy = _parts(algo, tmp_path)
    loss = SoftDQNLoss(actor, tau=0.5).make_value_estimator(gamma=0.9)
    learner = ValueLearner(run, algo, loss, HardTargetUpdate(loss, period_updates=5), egreedy)
    assert len(learner.schedules) == 1  # of the learning rate
    rate = StepLR(learner.optimizer, step_size=2, gamma=0.1)
    temperature = LinearSchedule(loss.regularizer.coefficients()["tau"].assign, 0.5, 0.1, 32, after_frames=16)
    seen = []
    for batch in learner.collect(env, TensorDictSequential(actor, egreedy), [rate, egreedy, temperature]):
        learner.remember(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
        seen.append((learner.optimizer.param_groups[0]["lr"], egreedy.eps.item(), loss.regularizer.tau.item()))
    rates, epsilons, temperatures = zip(*seen, strict=True)
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])
    assert epsilons == pytest.approx([1, 0.8, 0.6, 0.4, 0.4, 0.4], abs=1e-5)
    assert temperatures == pytest.approx([0.5, 0.5, 0.3, 0.1, 0.1, 0.1])
    run.finish()
