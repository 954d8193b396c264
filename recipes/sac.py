"""Soft actor-critic, the baseline: its temperature fixed or adapted to a target entropy.

    python recipes/sac.py
    python recipes/sac.py algo.adapt_tau=false algo.tau=0.1
    python recipes/sac.py env=mujoco/hopper run.seed=1

Source: Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", 2018 [H18]. Expect an evaluation return above
-200 on Pendulum-v1 (recipes/RESULTS.md). ``policy=multicategorical`` takes the expectation over the bins exactly where
the action has one dimension (TorchRL's DiscreteSACLoss); beyond, it differentiates action and log-probability through a
straight-through Gumbel-softmax sample, which is biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType
from torchrl.objectives import DiscreteSACLoss

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.modules import (
    PolicySettings,
    SingleDimensionActor,
    bin_value_network,
    policy,
    state_action_value_network,
)
from torchrl_reg.objectives import PolyakTargetUpdate, SoftActorCriticLoss
from torchrl_reg.training import RecipeConfig, Run, check_replay_learning, recipe, require


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit Pendulum; env and paper presets change them."""

    total_frames: int = 10_000  # environment frames
    tau: float = 1.0  # temperature (alpha in [H18]), reward units; where it starts if adapted
    adapt_tau: bool = True  # to the target entropy [H18]
    target_entropy: float | None = None  # nats; null: minus the action dimensions [H18], of bins half of ln(bins) each
    gamma: float = 0.99  # discount [H18]
    learning_rate: float = 1e-3  # Adam, for actor, critics and temperature; 3e-4 on MuJoCo [H18]
    adam_eps: float = 1e-8  # PyTorch's
    batch_size: int = 256  # transitions [H18]
    replay_capacity: int = 100_000  # transitions; 1M on MuJoCo [H18]
    learning_starts_frames: int = 1_000  # 10k on MuJoCo
    update_every_frames: float = 1  # frames per gradient update [H18]
    target_rate: float = 0.005  # Polyak rate of the target critics, per update [H18]
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        unused = self.target_entropy is None or self.adapt_tau
        require(unused, "algo.target_entropy", "null where algo.adapt_tau=false", self.target_entropy)
        check_replay_learning(self)


@dataclass
class Config(RecipeConfig):
    groups: ClassVar[dict[str, str]] = {"policy": "gaussian", "env": "pendulum"}

    env: EnvSettings = field(default_factory=lambda: EnvSettings("pendulum"))
    policy: PolicySettings = field(default_factory=lambda: PolicySettings("gaussian"))
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        differentiable = self.policy.name != "autoregressive"  # its samples carry no gradient to the policy
        require(differentiable, "policy.name", "gaussian, flow or multicategorical for SAC", self.policy.name)


def make_loss(cfg: Config, env: EnvBase, actor: Any, device: torch.device) -> SoftActorCriticLoss | DiscreteSACLoss:
    """The SAC loss with two critics; of one-dimensional bins TorchRL's, which sums over them."""
    algo = cfg.algo
    dims = env.full_action_spec_unbatched["action"].shape[-1]
    binned = cfg.policy.name == "multicategorical"
    auto = 0.5 * sum(torch.tensor(actor.bins.num_bins).log().tolist()) if binned else -float(dims)
    if binned and algo.target_entropy is not None:
        require(
            0 < algo.target_entropy < 2 * auto, "algo.target_entropy", f"in (0, {2 * auto:.3f})", algo.target_entropy
        )
    entropy = auto if algo.target_entropy is None else algo.target_entropy
    if not (binned and dims == 1):
        critics = [state_action_value_network(cfg.policy, env).to(device) for _ in range(2)]
        target = entropy if algo.adapt_tau else None
        loss = SoftActorCriticLoss(actor, critics, tau=algo.tau, target_entropy=target, straight_through=binned)
        return loss.make_value_estimator(gamma=algo.gamma)
    # A list of critics: from a single one TorchRL would initialize the copies itself, not as the layers do.
    view = SingleDimensionActor(actor)
    discrete = DiscreteSACLoss(
        view,
        [bin_value_network(cfg.policy, env).to(device) for _ in range(2)],
        action_space="categorical",
        loss_function="l2",
        alpha_init=algo.tau,
        fixed_alpha=not algo.adapt_tau,
        target_entropy=entropy,
    )
    discrete.set_keys(action=view.stored_action_key)
    discrete.make_value_estimator(gamma=algo.gamma)
    return discrete


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of the policy. Evaluated at its mode, and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    actor = policy(cfg.policy, env).to(run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)})

    # What it remembers: single transitions, sampled uniformly.
    replay = run.replay(algo.replay_capacity, algo.batch_size)

    # What it learns: Q(s, a) towards r + gamma (min Q_target - tau ln pi)(s', a'), pi towards softmax(Q / tau).
    loss = make_loss(cfg, env, actor, run.device)
    optimizer = torch.optim.Adam(
        loss.parameters(), lr=algo.learning_rate, eps=algo.adam_eps, fused=True, capturable=run.cudagraphs
    )
    target = PolyakTargetUpdate(loss, rate=algo.target_rate)
    update = run.make_update(loss, optimizer, target)

    # The loop
    run.track(loss=loss, optimizer=optimizer, target=target, replay=replay)
    frames_per_batch = algo.num_envs * algo.collect_steps * frames_per_step(cfg.env)
    for batch in run.collect(env, actor, total_frames=algo.total_frames, frames_per_batch=frames_per_batch):
        rows = batch.select(*loss.in_keys).transpose(0, 1).reshape(-1)  # in order of time
        if "action_index" in loss.in_keys:
            rows["action_index"] = rows["action_index"].squeeze(-1)  # the form DiscreteSACLoss takes
        replay.extend(rows)
        for minibatch in run.minibatches(replay, algo.update_every_frames, algo.learning_starts_frames):
            run.record(update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
