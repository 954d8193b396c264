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
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.lab import PolicyLearner, PolicyLearning, RecipeConfig, Run, recipe, require
from torchrl_reg.modules import PolicySettings, policy, state_value_network
from torchrl_reg.objectives import PathConsistencyLoss, PolyakTargetUpdate


@dataclass
class Algo(PolicyLearning):
    """Hyperparameters of the method; those of its replay, schedule and optimizer are PolicyLearning's."""

    tau: float = 0.1  # temperature, reward units
    lam: float = 0.0  # weight of the KL to the lagged policy, reward units; > 0 is Trust-PCL [N18]
    max_kl: float | None = None  # nats per step; adapts lam to this budget ([C] does by a search). null: fixed lam
    rollout: int = 10  # longest sub-trajectory, steps [C]; 1 with delay_value=true is IQ, with false one-step PCL
    unified: bool = False  # one network: V = (tau + lam) logsumexp of the policy's logits [N17]
    delay_value: bool = True  # bootstrap on the lagged value network: use_target_values in [C]; false: residual [N17]
    max_grad_norm: float | None = 40.0  # of all gradients together [C]; null: no clip
    learning_rate: float = 1e-3  # Adam, of all networks
    batch_size: int = 32  # sequences
    replay_capacity: int = 100_000  # transitions
    target_rate: float = 0.01  # Polyak rate of the lagged networks: 1 - target_network_lag in [C]
    collect_steps: int = 10  # steps of each between two rounds of updates: the length of a stored sequence

    def validate(self) -> None:
        for name in ("tau", "lam"):
            require(getattr(self, name) >= 0, f"algo.{name}", ">= 0", getattr(self, name))
        super().validate()
        require(1 <= self.rollout <= self.collect_steps, "algo.rollout", "in 1 ... algo.collect_steps", self.rollout)
        least = self.batch_size * self.collect_steps
        require(self.replay_capacity >= least, "algo.replay_capacity", f">= {least} transitions", self.replay_capacity)


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [{"policy": "multicategorical"}, {"env": "pendulum"}]

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
    target = PolyakTargetUpdate(loss, rate=algo.target_rate)

    # What it stores: sequences of collect_steps steps, sampled uniformly.
    learner = PolicyLearner(run, algo, loss, target, max_grad_norm=algo.max_grad_norm, sequences=True)

    # The loop
    for batch in learner.collect(env, actor):
        learner.store(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
