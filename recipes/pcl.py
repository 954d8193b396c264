"""Path consistency learning: soft consistency of every sub-trajectory, off-policy (Trust-PCL is ``algo.lam > 0``).

    python recipes/pcl.py
    python recipes/pcl.py algo.lam=0.1 algo.delay_value=false
    python recipes/pcl.py env=mujoco/hopper +paper=nachum2018

Sources: Nachum et al., "Bridging the Gap Between Value and Policy Based RL", 2017 [N17]; Nachum et al., "Trust-PCL",
2018 [N18], and the released code [C]. What to expect is in recipes/RESULTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.modules import PolicySettings, policy, state_value_network
from torchrl_reg.objectives import PathConsistencyLoss, PolyakTargetUpdate
from torchrl_reg.training import RecipeConfig, Run, check_replay_learning, recipe, require


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit Pendulum; env and paper presets change them."""

    total_frames: int = 10_000  # environment frames
    tau: float = 0.1  # temperature, reward units
    lam: float = 0.0  # weight of the KL to the lagged policy, reward units; > 0 is Trust-PCL [N18]
    max_kl: float | None = None  # nats per step; adapts lam to this budget ([C] does by a search). null: fixed lam
    rollout: int = 10  # longest sub-trajectory, steps [C]; 1 with delay_value=true is IQ, with false one-step PCL
    unified: bool = False  # one network: V = (tau + lam) logsumexp of the policy's logits [N17]
    delay_value: bool = True  # bootstrap on the lagged value network: use_target_values in [C]; false: residual [N17]
    gamma: float = 0.99  # discount
    learning_rate: float = 1e-3  # Adam
    adam_eps: float = 1e-8  # PyTorch's; 2e-4 in [C]
    max_grad_norm: float | None = 40.0  # of all gradients together [C]; null: no clip
    batch_size: int = 32  # sequences
    replay_capacity: int = 100_000  # transitions
    learning_starts_frames: int = 1_000
    update_every_frames: float = 1  # frames per gradient update
    target_rate: float = 0.01  # Polyak rate of the lagged networks: 1 - target_network_lag in [C]
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 10  # steps of each between two rounds of updates: the length of a stored sequence

    def validate(self) -> None:
        for name in ("tau", "lam"):
            require(getattr(self, name) >= 0, f"algo.{name}", ">= 0", getattr(self, name))
        check_replay_learning(self)
        require(1 <= self.rollout <= self.collect_steps, "algo.rollout", "in 1 ... algo.collect_steps", self.rollout)
        least = self.batch_size * self.collect_steps
        require(self.replay_capacity >= least, "algo.replay_capacity", f">= {least} transitions", self.replay_capacity)


@dataclass
class Config(RecipeConfig):
    groups: ClassVar[dict[str, str]] = {"policy": "multicategorical", "env": "pendulum"}

    env: EnvSettings = field(default_factory=lambda: EnvSettings("pendulum"))
    policy: PolicySettings = field(default_factory=PolicySettings)
    algo: Algo = field(default_factory=Algo)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of the policy. Evaluated at its mode, and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    actor = policy(cfg.policy, env).to(run.device)
    value = None if algo.unified else state_value_network(cfg.policy, env).to(run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)})

    # What it remembers: sequences of collect_steps steps, sampled uniformly.
    replay = run.replay(algo.replay_capacity // algo.collect_steps, algo.batch_size)

    # What it learns: V(s_t) towards sum_i gamma^i (r - tau ln pi - lam ln(pi / lagged pi)) + gamma^n V(s_{t+n}).
    loss = PathConsistencyLoss(
        actor,
        value,
        tau=algo.tau,
        lam=algo.lam,
        rollout=algo.rollout,
        max_kl=algo.max_kl,
        delay_value=algo.delay_value,
    ).make_value_estimator(gamma=algo.gamma)
    optimizer = torch.optim.Adam(
        loss.parameters(), lr=algo.learning_rate, eps=algo.adam_eps, fused=True, capturable=run.cudagraphs
    )
    target = PolyakTargetUpdate(loss, rate=algo.target_rate)
    update = run.make_update(loss, optimizer, target, max_grad_norm=algo.max_grad_norm)

    # The loop
    run.track(loss=loss, optimizer=optimizer, target=target, replay=replay)
    frames_per_batch = algo.num_envs * algo.collect_steps * frames_per_step(cfg.env)
    for batch in run.collect(env, actor, total_frames=algo.total_frames, frames_per_batch=frames_per_batch):
        replay.extend(batch.select(*loss.in_keys))  # [num_envs, collect_steps]: a sequence is one row
        for minibatch in run.minibatches(replay, algo.update_every_frames, algo.learning_starts_frames):
            run.record(update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
