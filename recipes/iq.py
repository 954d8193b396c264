"""Implicit Q-values: Q = V + tau ln pi, one regression over a policy and a value (M-IQ is ``algo.alpha=0.9``).

    python recipes/iq.py
    python recipes/iq.py env=mujoco/hopper algo.alpha=0.9 run.seed=1
    python recipes/iq.py -m policy=multicategorical,flow,gaussian env=mujoco/hopper +paper=vieillard2021_mujoco

Source: Vieillard, Andrychowicz, Raichuk, Pietquin, Geist, "Implicitly Regularized RL with Implicit Q-Values", 2021
[V21]; [S] marks SAC's settings. Expect a return above -200 on Pendulum-v1 (recipes/RESULTS.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.lab import PolicyLearner, PolicyLearning, RecipeConfig, Run, recipe, require
from torchrl_reg.modules import PolicySettings, policy, state_value_network
from torchrl_reg.objectives import ImplicitQLoss, PolyakTargetUpdate


@dataclass
class Algo(PolicyLearning):
    """Hyperparameters of the method; replay, schedule and optimizer are described in PolicyLearning."""

    tau: float = 0.01  # temperature, reward units; .001 on Adroit [V21]
    alpha: float = 0.0  # Munchausen weight: 0 is IQ, .9 the best M-IQ [V21]
    clip_min: float | None = None  # lower clip of tau ln pi in the Munchausen term, reward units; null: none [V21]
    residual: bool = False  # bootstrap on the online value: one-step PCL, with alpha > 0 Trust-PCL [V21, ablation]
    baseline: str = "logsumexp"  # of the advantages in Q [V21]; mean: as in dueling networks (multicategorical only)
    target_entropy: float | None = None  # nats; adapts tau (multicategorical only), ours; null: fixed tau [V21]
    learning_rate: float = 1e-3  # Adam, of all networks
    batch_size: int = 256  # transitions
    replay_capacity: int = 100_000  # transitions

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        require(self.baseline in ("logsumexp", "mean"), "algo.baseline", "logsumexp or mean", self.baseline)
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [{"policy": "multicategorical"}, {"env": "pendulum"}]

    env: EnvSettings = field(default_factory=lambda: EnvSettings("pendulum"))
    policy: PolicySettings = field(default_factory=PolicySettings)
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        fits = self.algo.target_entropy is None or self.policy.name == "multicategorical"
        require(fits, "algo.target_entropy", "null unless policy=multicategorical", self.algo.target_entropy)
        fits = self.algo.baseline == "logsumexp" or self.policy.name == "multicategorical"
        require(fits, "algo.baseline", "logsumexp unless policy=multicategorical", self.algo.baseline)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of the policy. Evaluated at its mode, and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    actor = policy(cfg.policy, env).to(run.device)
    value = state_value_network(cfg.policy, env).to(run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)})

    # What it learns: tau ln pi(a|s) + V(s) towards r + alpha tau ln pi_target(a|s) + gamma V_target(s').
    loss = ImplicitQLoss(
        actor,
        value,
        tau=algo.tau,
        alpha=algo.alpha,
        clip_min=algo.clip_min,
        residual=algo.residual,
        baseline=algo.baseline,  # type: ignore[arg-type]
        target_entropy=algo.target_entropy,
    ).make_value_estimator(gamma=algo.gamma)
    target = PolyakTargetUpdate(loss, rate=algo.target_rate)

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
