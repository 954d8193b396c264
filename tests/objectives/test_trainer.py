"""Our losses inside TorchRL's own DQNTrainer."""

from __future__ import annotations

import warnings

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, TransformedEnv
from torchrl.modules import MLP, QValueActor
from torchrl.trainers.algorithms import DQNTrainer

from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss


@pytest.mark.filterwarnings("ignore")  # TorchRL's prototype warnings are not ours
def test_munchausen_dqn_in_dqn_trainer() -> None:
    torch.manual_seed(0)
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())
    actor = QValueActor(MLP(in_features=4, out_features=2, num_cells=[16]), spec=env.action_spec)
    loss = MunchausenDQNLoss(actor, tau=0.03, alpha=0.9)
    before = [p.detach().clone() for p in loss.parameters()]
    collector = Collector(env, actor, frames_per_batch=50, total_frames=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = DQNTrainer(
            collector=collector,
            total_frames=200,
            frame_skip=1,
            optim_steps_per_batch=2,
            loss_module=loss,
            optimizer=torch.optim.Adam(loss.parameters()),
            replay_buffer=TensorDictReplayBuffer(storage=LazyTensorStorage(500), batch_size=16),
            target_net_updater=HardTargetUpdate(loss, period_updates=2),
            progress_bar=False,
            episode_reward_key="episode_reward",
        )
        trainer.train()
    assert trainer.collected_frames >= 200
    assert any((old != new).any() for old, new in zip(before, loss.parameters(), strict=True))
