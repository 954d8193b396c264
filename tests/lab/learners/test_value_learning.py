"""The learner of the value-based recipes: schedules, storage, checks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_dqn
import torch
from tensordict.nn import TensorDictSequential
from torch.optim.lr_scheduler import StepLR
from torchrl.data import Categorical
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.lab import Run, RunSettings, UserError
from torchrl_reg.lab.learners.schedules import EpsilonSchedule, LinearSchedule
from torchrl_reg.lab.learners.value_learning import ValueLearner, ValueLearning
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate, SoftDQNLoss

GAMMA = 0.9


def _learner(path: Path, scheduled: bool, **options: Any) -> tuple[ValueLearner, EGreedyModule, Any]:
    """The learner, its exploration, and a function that gives its batches."""
    sizes = {"num_envs": 4, "collect_steps": 4, "batch_size": 8, "replay_capacity": 100}
    algo = ValueLearning(total_frames=96, **sizes, **options)
    run = Run(tiny_dqn.Config(run=RunSettings(dir=str(path / "run"), progress=False)))
    env = make_env(EnvSettings("cartpole"), algo.num_envs)
    spec = env.full_action_spec_unbatched["action"]
    actor = QValueActor(q_network(NetSettings(num_cells=[8]), env), spec=spec)
    egreedy = EGreedyModule(spec, eps_init=1.0, eps_end=0.4, annealing_num_steps=48)  # .2 for 16 frames
    loss = SoftDQNLoss(actor, tau=0.5).make_value_estimator(gamma=GAMMA)
    exploration = EpsilonSchedule(egreedy, algo) if scheduled else egreedy
    learner = ValueLearner(run, algo, loss, HardTargetUpdate(loss, period_updates=5), exploration)
    return learner, egreedy, partial(learner.collect, env, TensorDictSequential(actor, egreedy))


@pytest.mark.parametrize(
    ("scheduled", "steps", "expected"),
    [
        (True, False, [1.0, 1.0, 0.86, 0.58, 0.3, 0.3]),  # seen while collecting and learning from each batch
        (False, True, [1.0, 0.8, 0.6, 0.4, 0.4, 0.4]),
        (False, False, [1.0] * 6),
    ],
)
def test_epsilon_follows_the_schedule_given_and_nothing_else(tmp_path, scheduled, steps, expected):
    learner, egreedy, collect = _learner(
        tmp_path, scheduled, learning_starts_frames=24, eps_frames=40, eps_end=0.3, clip_rewards=True
    )
    seen = []
    for batch in collect():
        seen.append(egreedy.eps.item())
        batch["next", "reward"].mul_(-3)
        learner.store(batch)
        if steps:
            egreedy.step(16)
    assert seen == pytest.approx(expected, abs=1e-5)
    assert (learner.replay[:]["next", "reward"] == -1).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.0, 1.0, 1.0, 0.75, 0.5]),
        ({"eps_start": 0.5, "random_until_learning": True}, [1.0, 1.0, 0.5, 0.5, 0.5]),
        ({"eps_starts_frames": 0}, [1.0, 0.75, 0.5, 0.5, 0.5]),
        ({"eps_starts_frames": 0, "random_until_learning": True}, [1.0, 1.0, 0.5, 0.5, 0.5]),
        ({"eps_off_frames": 30}, [1.0, 1.0, 1.0, 0.0, 0.0]),
        ({"eps_off_frames": 0}, [0.0, 0.0, 0.0, 0.0, 0.0]),
        ({"eps_off_frames": 0, "random_until_learning": True}, [1.0, 1.0, 0.0, 0.0, 0.0]),
        # eps_end + (1 - eps_end) exp(-frames / eps_frames), from learning_starts_frames on
        ({"eps_decay": "exponential"}, [1.0, 1.0, 1.0, 0.5 + 0.5 * math.exp(-0.5), 0.5 + 0.5 * math.exp(-1)]),
    ],
)
def test_where_epsilon_starts_to_fall(options, expected):
    algo = ValueLearning(learning_starts_frames=20, eps_frames=20, eps_end=0.5, **options)
    module = EGreedyModule(Categorical(2), eps_init=algo.eps_start, eps_end=algo.eps_end)
    schedule, run = EpsilonSchedule(module, algo), SimpleNamespace(frames=0)
    seen = [module.eps.item()]
    for run.frames in (10, 20, 30, 40):
        schedule.step(run)
        seen.append(module.eps.item())
    assert seen == pytest.approx(expected)


def test_each_counts_in_its_own_unit_and_takes_the_place_of_those_of_the_settings(tmp_path):
    learner, egreedy, collect = _learner(tmp_path, False, learning_starts_frames=16, learning_rate=1.0)
    regularizer, run = learner.loss.regularizer, learner.run
    assert len(learner.schedules) == 1  # of the learning rate
    rate = StepLR(learner.optimizer, step_size=2, gamma=0.1)
    temperature = LinearSchedule(regularizer.coefficients()["tau"].assign, 0.5, 0.1, 32, after_frames=16)
    seen = []
    learner.schedules = [rate, egreedy, temperature]
    assert learner.parts()["schedule_0"] is rate and "schedule_2" not in learner.parts()
    for batch in collect():
        learner.store(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
        seen.append((learner.optimizer.param_groups[0]["lr"], egreedy.eps.item(), regularizer.tau.item()))
    rates, epsilons, temperatures = zip(*seen, strict=True)
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])
    assert epsilons == pytest.approx([1, 0.8, 0.6, 0.4, 0.4, 0.4], abs=1e-5)
    assert temperatures == pytest.approx([0.5, 0.5, 0.3, 0.1, 0.1, 0.1])
    run.finish()


def test_a_checkpoint_holds_all_that_the_learner_owns(tmp_path):
    learner, egreedy, _ = _learner(tmp_path, True, n_steps=3)
    learner.mine = torch.nn.Linear(2, 2)
    owned = {"loss", "optimizer", "target", "replay", "n_step", "exploration", "mine"}
    assert learner.parts().keys() == owned and learner.parts()["exploration"] is egreedy


def test_windows_longer_than_the_first_batch_are_refused(tmp_path):
    learner, _, collect = _learner(tmp_path, False, n_steps=5)
    with pytest.raises(UserError, match=r"^algo\.collect_steps must be >= 5, algo\.n_steps, got 4\.$"):
        learner.store(next(collect()))


def test_priorities_come_from_the_settings_and_their_correction_is_annealed(tmp_path):
    learner, _, collect = _learner(
        tmp_path, True, priority_exponent=0.6, importance_exponent=0.4, importance_exponent_end=0.9, max_grad_norm=0.1
    )
    sampler, seen = learner.replay.sampler, []
    for batch in collect():
        learner.store(batch)
        seen.append(sampler.beta)
    total = learner.algo.total_frames
    assert sampler.alpha == 0.6 and seen[0] == 0.4
    assert seen[-1] == pytest.approx(0.4 + 0.5 * (total - 16) / total)
    minibatch = learner.replay.sample()
    scalars = learner.update(minibatch)
    assert "grad_norm" in scalars and minibatch["priority_weight"].max() == 1
    written = torch.as_tensor(sampler._sum_tree[minibatch["index"]])
    assert (written != 1).any()  # the priority of new rows
