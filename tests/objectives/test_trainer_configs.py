"""Our losses from YAML, as TorchRL's trainers read theirs."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import MLP, QValueActor, ValueOperator

import torchrl_reg.objectives as objectives
from torchrl_reg.modules import gaussian_actor
from torchrl_reg.objectives.trainer_configs import LOSSES, loss_from_config, register_loss_configs


@pytest.fixture
def composed(tmp_path, monkeypatch):
    """``composed(yaml, *overrides)`` -> what Hydra makes of a file that chooses one of our losses."""
    # TorchRL's own configs, which building its trainer adds, would hold every env=gym of this process to their schema.
    Plugins.instance()  # Hydra's own stay
    monkeypatch.setattr(ConfigStore.instance(), "repo", copy.deepcopy(ConfigStore.instance().repo))
    register_loss_configs(ConfigStore.instance())

    def compose_from(yaml: str, *overrides: str) -> Any:
        (tmp_path / "train.yaml").write_text(yaml)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("train", overrides=list(overrides))

    return compose_from


def critic() -> ValueOperator:
    return ValueOperator(MLP(in_features=6, out_features=1, num_cells=[8]), in_keys=["observation", "action"])


SOFT_DQN = "defaults:\n  - loss@loss_module: soft_dqn\n  - _self_\n"


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_the_defaults_of_its_constructor(composed, name):
    config = composed(SOFT_DQN, f"loss@loss_module={name}").loss_module
    loss, parameters = getattr(objectives, config.loss), {}
    for cls in (*(getattr(loss, "head_type", None) or object).__mro__, *reversed(loss.__mro__)):
        if "__init__" in vars(cls):
            parameters |= inspect.signature(vars(cls)["__init__"]).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    own = {name for name, default in defaults.items() if name in config and default is not inspect.Parameter.empty}
    assert {name: config[name] for name in own} == {name: defaults[name] for name in own}
    assert set(config) <= {"_target_", "_partial_", "loss", "gamma", "value_estimator", "keys", *parameters}


def test_every_named_loss_has_a_config():
    named = {name for name in objectives.__all__ if name.endswith("Loss")} - {"QLearningLoss", "RegularizedLoss"}
    assert {config.loss for config in LOSSES.values()} == named


def test_values_reach_the_loss_and_typos_do_not(composed):
    chosen = (SOFT_DQN, "loss@loss_module=munchausen_dqn")
    values = ("tau=0.5", "alpha=0.25", "clip_min=null", "gamma=0.9", "keys={reward: [agent, r]}")
    config = composed(*chosen, *(f"loss_module.{value}" for value in values))
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3))
    loss = instantiate(config.loss_module, value_network=actor, _convert_="all")
    assert type(loss) is objectives.MunchausenDQNLoss and loss.tensor_keys.reward == ("agent", "r")
    found = (loss.tau, loss.alpha, loss.clip_min, loss.value_estimator.gamma)
    assert tuple(map(float, found)) == pytest.approx((0.5, 0.25, -torch.inf, 0.9))
    with pytest.raises(ConfigCompositionException):
        composed(*chosen, "loss_module.taau=0.5")


def test_an_unknown_loss_is_refused_and_twin_critics_may_be_partials():
    with pytest.raises(ValueError, match="loss must be one of AdvantageLearningLoss, .* got 'HardTargetUpdate'"):
        loss_from_config("HardTargetUpdate")
    actor = gaussian_actor(nn.Linear(4, 4), low=[-1.0] * 2, high=[1.0] * 2)
    loss = loss_from_config("SoftActorCriticLoss", actor_network=actor, qvalue_network=[partial(critic)] * 2)
    assert len(loss.qvalue_network.critics) == 2


TRAINER = """
defaults:
  - loss@trainer.loss_module: munchausen_dqn
  - _self_
trainer:
  _target_: torchrl.trainers.algorithms.configs.trainers._make_dqn_trainer  # what DQNTrainerConfig builds with
  total_frames: 200
  optim_steps_per_batch: 2
  progress_bar: false
  log_rewards: false
  enable_logging: false
  logger: null
  seed: 0
  clip_norm: null
  save_trainer_file: null
  value_network:
    _target_: torchrl.modules.QValueActor
    module: {_target_: torchrl.modules.MLP, in_features: 4, out_features: 2, num_cells: [16]}
    spec: {_target_: torchrl.data.Categorical, n: 2}
  collector:
    _target_: torchrl.collectors.Collector
    _partial_: true
    create_env_fn: {_target_: torchrl.envs.GymEnv, env_name: CartPole-v1, categorical_action_encoding: true}
    frames_per_batch: 50
    total_frames: 200
  loss_module: {_partial_: true, tau: 0.5, gamma: 0.9}
  optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
  replay_buffer:
    _target_: torchrl.data.TensorDictReplayBuffer
    storage: {_target_: torchrl.data.LazyTensorStorage, max_size: 500}
    batch_size: 16
  target_net_updater: {_target_: torchrl_reg.objectives.HardTargetUpdate, _partial_: true, period_updates: 2}
"""


@pytest.mark.filterwarnings("ignore")  # TorchRL's prototype warnings are not ours
def test_torchrls_trainer_runs_from_yaml(composed):
    trainer = instantiate(composed(TRAINER).trainer)
    loss = trainer.loss_module
    assert type(loss) is objectives.MunchausenDQNLoss
    assert (float(loss.tau), float(loss.value_estimator.gamma)) == (0.5, 0.9)
    before = [p.detach().clone() for p in loss.parameters()]
    trainer.train()
    assert trainer.collected_frames >= 200
    assert any((old != new).any() for old, new in zip(before, loss.parameters(), strict=True))
