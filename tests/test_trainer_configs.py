"""Our losses from YAML, as TorchRL's trainers read theirs."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import MLP, QValueActor, ValueOperator

import torchrl_reg.objectives as objectives
from torchrl_reg.modules import (
    CategoricalQActor,
    FixedQuantileQActor,
    ImplicitQuantileNetwork,
    MulticategoricalActor,
    QuantileQActor,
    StochasticSamplerActor,
    gaussian_actor,
)
from torchrl_reg.trainer_configs import LOSSES, register_loss_configs


@pytest.fixture
def composed(tmp_path: Path) -> Any:
    register_loss_configs()
    (tmp_path / "train.yaml").write_text("defaults:\n  - loss@loss_module: soft_dqn\n  - _self_\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield lambda *overrides: compose("train", overrides=list(overrides))


def networks(name: str) -> dict[str, Any]:
    if name in ("implicit_q", "path_consistency"):
        actor = MulticategoricalActor(nn.Linear(4, 10), low=[-1.0, -1.0], high=[1.0, 1.0], num_bins=5)
        return {"actor_network": actor, "value_network": ValueOperator(nn.Linear(4, 1), in_keys=["observation"])}
    if name in ("virel", "soft_actor_critic", "soft_q_learning"):
        if name != "soft_q_learning":
            acts: Any = gaussian_actor(nn.Linear(4, 4), low=[-1.0, -1.0], high=[1.0, 1.0])
        else:
            acts = StochasticSamplerActor(nn.Identity(), 4, low=[-1.0, -1.0], high=[1.0, 1.0], num_cells=[8])
        critic = ValueOperator(MLP(in_features=6, out_features=1, num_cells=[8]), in_keys=["observation", "action"])
        return {"actor_network": acts, "qvalue_network": critic}
    if "categorical" in name:
        return {"value_network": CategoricalQActor(nn.Linear(4, 5 * 3), num_atoms=5, spec=Categorical(3))}
    if name == "quantile_regression_dqn":
        return {"value_network": FixedQuantileQActor(nn.Linear(4, 5 * 3), num_quantiles=5, spec=Categorical(3))}
    if "iqn" in name:
        net = ImplicitQuantileNetwork(nn.Linear(4, 8), num_features=8, num_actions=3, num_cells=8)
        return {"value_network": QuantileQActor(net, spec=Categorical(3))}
    return {"value_network": QValueActor(nn.Linear(4, 3), spec=Categorical(3))}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_made_with_the_defaults_of_its_constructor(composed: Any, name: str) -> None:
    config = composed(f"loss@loss_module={name}", "loss_module.gamma=0.9", "loss_module.keys={reward: [agent, r]}")
    loss = instantiate(config.loss_module, **networks(name), _convert_="all")
    assert type(loss) is getattr(objectives, config.loss_module.loss)
    assert loss.tensor_keys.reward == ("agent", "r") and float(loss.value_estimator.gamma) == 0.9
    own = set(LOSSES[name].__dataclass_fields__) - {"_target_", "_partial_", "loss", "gamma", "value_estimator", "keys"}
    defaults: dict[str, Any] = {}
    for cls in reversed(type(loss).__mro__):
        if "__init__" in vars(cls):
            defaults |= {k: p.default for k, p in inspect.signature(vars(cls)["__init__"]).parameters.items()}
    for argument in own:
        default = defaults.get(argument, inspect.Parameter.empty)  # those of a head come from its own settings
        if default is not inspect.Parameter.empty:
            assert config.loss_module[argument] == default, argument


def test_every_named_loss_has_a_config() -> None:
    named = {name for name in objectives.__all__ if name.endswith("Loss")} - {"QLearningLoss", "RegularizedLoss"}
    assert {config.loss for config in LOSSES.values()} == named


def test_values_reach_the_loss_and_typos_do_not(composed: Any) -> None:
    chosen = "loss@loss_module=munchausen_dqn"
    config = composed(chosen, "loss_module.tau=0.5", "loss_module.alpha=0.25", "loss_module.clip_min=null")
    loss = instantiate(config.loss_module, **networks("munchausen_dqn"))
    assert (float(loss.tau), float(loss.alpha), float(loss.clip_min)) == (0.5, 0.25, -torch.inf)
    with pytest.raises(ConfigCompositionException):
        composed(chosen, "loss_module.taau=0.5")


def test_an_unknown_loss_is_refused() -> None:
    from torchrl_reg.objectives.from_config import loss_from_config

    with pytest.raises(ValueError, match="loss must be one of AdvantageLearningLoss, .* got 'HardTargetUpdate'"):
        loss_from_config("HardTargetUpdate")


def test_twin_critics_may_be_partials() -> None:
    from torchrl_reg.objectives.from_config import loss_from_config

    def critic() -> ValueOperator:
        return ValueOperator(MLP(in_features=6, out_features=1), in_keys=["observation", "action"])

    actor = gaussian_actor(torch.nn.Linear(4, 4), low=[-1.0] * 2, high=[1.0] * 2)
    loss = loss_from_config("SoftActorCriticLoss", actor_network=actor, qvalue_network=[partial(critic)] * 2)
    assert len(loss.qvalue_network.critics) == 2  # type: ignore[union-attr, arg-type]


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
def test_torchrls_trainer_runs_from_yaml(tmp_path: Path) -> None:
    register_loss_configs()
    (tmp_path / "trainer.yaml").write_text(TRAINER)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        trainer = instantiate(compose("trainer").trainer)
    loss = trainer.loss_module
    assert type(loss) is objectives.MunchausenDQNLoss
    assert (float(loss.tau), float(loss.value_estimator.gamma)) == (0.5, 0.9)
    before = [p.detach().clone() for p in loss.parameters()]
    trainer.train()
    assert trainer.collected_frames >= 200
    assert any((old != new).any() for old, new in zip(before, loss.parameters(), strict=True))
