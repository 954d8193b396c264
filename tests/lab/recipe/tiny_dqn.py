"""A recipe of plain TorchRL pieces: what the tests of ``torchrl_reg.lab`` run."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from omegaconf import MISSING
from tensordict.nn import TensorDictSequential
from torchrl.data.replay_buffers import PrioritizedSampler, RandomSampler
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.utils import ExplorationType
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

from torchrl_reg.lab import Learner, LinearSchedule, RecipeConfig, Run, make_replay, recipe, require


@dataclass
class Algo:
    """Hyperparameters of the tiny DQN."""

    total_frames: int = 1_200
    num_envs: int = 4
    collect_steps: int = 4
    learning_starts_frames: int = 64
    update_every_frames: int = 8
    replay_capacity: int = 500  # transitions
    batch_size: int = 16
    lr: float = 1e-3
    gamma: float = 0.99
    prioritized: bool = False
    max_grad_norm: float | None = None
    nap_seconds: float = 0.0  # after every batch, for tests that disturb a run before it ends

    def validate(self) -> None:
        require(0 <= self.gamma <= 1, "algo.gamma", "in [0, 1]", self.gamma)


@dataclass
class EnvSettings:
    """Which gymnasium environment."""

    name: str = MISSING
    max_episode_frames: int = 60


@dataclass
class NetSettings:
    """Hidden layers of the Q-network."""

    cells: list[int] = MISSING


@dataclass
class Config(RecipeConfig):
    """All settings of a tiny run."""

    defaults: ClassVar[list[Any]] = [{"net": "small"}, {"env": "cartpole"}]

    algo: Algo = field(default_factory=Algo)
    env: EnvSettings = MISSING
    net: NetSettings = MISSING


def make_env(settings: EnvSettings, num_envs: int) -> EnvBase:
    vector = gymnasium.make_vec(
        settings.name,
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        max_episode_steps=settings.max_episode_frames,
    )
    return GymWrapper(vector, categorical_action_encoding=True)


def train(cfg: Config) -> Path:
    run = Run(cfg)
    algo = cfg.algo

    # What acts
    env = make_env(cfg.env, algo.num_envs)
    spec = env.action_spec_unbatched
    net = MLP(
        in_features=env.observation_spec["observation"].shape[-1],
        out_features=spec.n,
        num_cells=cfg.net.cells,
    )
    actor = QValueActor(net.to(run.device), in_keys=["observation"], spec=spec)
    egreedy = EGreedyModule(spec, annealing_num_steps=1)
    explorer = TensorDictSequential(actor, egreedy)
    run.evaluate_with(
        make_env(cfg.env, cfg.run.eval_episodes), {"greedy": actor, "sampled": (explorer, ExplorationType.RANDOM)}
    )

    # What it stores
    sampler = PrioritizedSampler(algo.replay_capacity, 0.6, 0.4) if algo.prioritized else None
    replay = make_replay(algo.replay_capacity, algo.batch_size, device=run.device, sampler=sampler or RandomSampler())

    # What it learns
    loss = DQNLoss(actor, delay_value=True, double_dqn=False)
    loss.deterministic_sampling_mode = ExplorationType.RANDOM  # as run.overlap needs, see OverlappedCollector
    loss.make_value_estimator(gamma=algo.gamma)
    optimizer = torch.optim.Adam(loss.parameters(), lr=algo.lr, fused=True, capturable=run.settings.cudagraphs)
    target = HardUpdate(loss, value_network_update_interval=10)
    learner = Learner(run, algo, loss, optimizer, target, replay=replay, max_grad_norm=algo.max_grad_norm)
    learner.exploration = egreedy
    learner.schedules.append(LinearSchedule(egreedy.eps.fill_, 1.0, 0.05, 500))

    # The loop
    for batch in learner.collect(env, explorer):
        replay.extend(batch.reshape(-1))
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
        time.sleep(algo.nap_seconds)
    return run.finish()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    recipe(Config, train)()
