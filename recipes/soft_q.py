"""Soft Q-learning over continuous actions: a sampled soft value, and a sampler trained by Stein's method.

    python recipes/soft_q.py
    python recipes/soft_q.py env=multigoal "algo.compose=[RUN_A,RUN_B]"  # samples exp of the mean of two Q-functions
    python recipes/soft_q.py env=mujoco/hopper +paper=haarnoja2017 run.seed=1

Source: Haarnoja, Tang, Abbeel, Levine, "Reinforcement Learning with Deep Energy-Based Policies", ICML 2017 [H17] and
its released code [C]; [S] marks SAC's settings. Check ``ess`` in the metrics: near 1, a single sampled action
determines the soft value, which is then too low. ``algo.compose``: Haarnoja et al., "Composable Deep Reinforcement
Learning for Robotic Manipulation", 2018; its theorem is about the mean of the Q-functions, its code adds them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.lab import (
    PolicyLearner,
    PolicyLearning,
    RecipeConfig,
    Run,
    composed_critics,
    recipe,
    require,
)
from torchrl_reg.modules import PolicySettings, policy, state_action_value_network
from torchrl_reg.objectives import PolyakTargetUpdate, SoftQLearningLoss


@dataclass
class Algo(PolicyLearning):
    """Hyperparameters of the method; replay, schedule and optimizer are described in PolicyLearning."""

    tau: float = 0.2  # temperature, reward units: the inverse of the reward scale in [C]
    num_value_samples: int = 8  # actions of the soft value, per state; 16 in [C]
    num_particles: int = 4  # of the sampler, per state; half of them repel the others; 16 in [C]
    proposal: str = "lattice"  # of the soft value's actions; also uniform [C], and actor with policy=flow
    form: str = "exact"  # of the Stein direction; also haarnoja2017 [C], which avoids the bounds of the actions
    compose: list[str] = field(default_factory=list)  # run folders whose mean Q, frozen, the sampler learns from
    num_critics: int = 2  # the minimum of their values is used [S]; 1 in [C]
    learning_rate: float = 1e-3  # Adam, of all networks
    batch_size: int = 128  # transitions [C]
    replay_capacity: int = 100_000  # transitions

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        require(self.num_value_samples >= 1, "algo.num_value_samples", ">= 1", self.num_value_samples)
        even = self.num_particles >= 4 and self.num_particles % 2 == 0
        require(even, "algo.num_particles", "even and >= 4", self.num_particles)
        known = self.proposal in ("lattice", "uniform", "actor")
        require(known, "algo.proposal", "lattice, uniform or actor", self.proposal)
        require(self.form in ("exact", "haarnoja2017"), "algo.form", "exact or haarnoja2017", self.form)
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [{"policy": "sampler"}, {"env": "pendulum"}]

    env: EnvSettings = field(default_factory=lambda: EnvSettings("pendulum"))
    policy: PolicySettings = field(default_factory=lambda: PolicySettings("sampler"))
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        require(self.policy.name in ("sampler", "flow"), "policy.name", "sampler or flow", self.policy.name)
        fits = self.algo.proposal != "actor" or self.policy.name == "flow"
        require(fits, "algo.proposal", "lattice or uniform unless policy=flow, which has a density", self.algo.proposal)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of the policy. Evaluated at zero noise ("greedy", though not a mode), and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    actor = policy(cfg.policy, env).to(run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)})

    # What it learns: Q(s, a) towards r + gamma tau ln int exp(Q_target(s', .) / tau), the sampler towards exp(Q / tau).
    critics = [state_action_value_network(cfg.policy, env).to(run.device) for _ in range(algo.num_critics)]
    loss = SoftQLearningLoss(
        actor,
        [composed_critics(algo.compose, "algo.compose").to(run.device)] if algo.compose else critics,
        tau=algo.tau,
        num_value_samples=algo.num_value_samples,
        num_particles=algo.num_particles,
        proposal=algo.proposal,  # type: ignore[arg-type]
        form=algo.form,  # type: ignore[arg-type]
    ).make_value_estimator(gamma=algo.gamma)
    target = None if algo.compose else PolyakTargetUpdate(loss, rate=algo.target_rate)
    if algo.compose:  # frozen critics are their own target networks
        warnings.filterwarnings("ignore", "No target network updater", UserWarning)

    # What it stores: single transitions, sampled uniformly.
    learner = PolicyLearner(run, algo, loss, target)

    # The loop
    for batch in learner.collect(env, actor):
        learner.store(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
