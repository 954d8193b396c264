"""Munchausen IQN: quantile regression towards the soft target, with a scaled log-policy added to the reward.

    python recipes/m_iqn.py
    python recipes/m_iqn.py env=minatar/breakout run.seed=1
    python recipes/m_iqn.py env=atari env.game=Pong +paper=vieillard2020

Sources: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020 [V20], and its released code [C];
Dabney et al., "Implicit Quantile Networks", ICML 2018 [D18].
On CartPole-v1 the greedy policy returned 475 or more at 100k frames with 20 of 20 seeds (recipes/RESULTS.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.lab import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe, require
from torchrl_reg.modules import (
    ActorSequential,
    BoltzmannQActor,
    EpsilonGreedyModule,
    NetSettings,
    QuantileQActor,
    quantile_network,
)
from torchrl_reg.objectives import HardTargetUpdate, MunchausenIQNLoss


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; replay, schedule, optimizer and exploration are described in ValueLearning."""

    total_frames: int = 80_000  # environment frames, frame skip included; 100,000 on CartPole
    n_steps: int = 1  # steps of the return [C]; 3 on CartPole, as reportedly in the paper's M-IQN
    tau: float = 0.03  # temperature, reward units [V20]
    alpha: float = 0.9  # Munchausen weight; 0 is soft IQN [V20]
    clip_min: float | None = -1.0  # lower clip of tau ln pi, reward units [V20: l_0]; null: none
    kappa: float = 1.0  # Huber width of the quantile regression, reward units [D18]
    reuse_quantiles: bool = False  # the policy at s' from the target's quantiles: faster, but in no paper
    share_fractions: bool = False  # the same fractions for the whole batch: faster, but in no paper
    learning_rate: float = 2e-3  # Adam, annealed to 0
    batch_size: int = 32  # transitions
    replay_capacity: int = 50_000  # transitions
    eps_start: float = 1.0  # probability of a random action
    eps_end: float = 0.05
    eps_frames: int = 10_000  # frames of linear annealing

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [  # Hydra's defaults list; env=cartpole also loads conf/tuned/m_iqn/cartpole.yaml
        *({"net": "mlp"}, {"env": "cartpole"}),
        *({"optional replay": "${env}"}, {"optional tuned": "m_iqn/${env}"}),
    ]

    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    net: NetSettings = field(default_factory=NetSettings)
    algo: Algo = field(default_factory=Algo)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: epsilon-greedy in the mean over quantiles. Evaluated greedy, and sampled from softmax(mean / tau).
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    net = quantile_network(cfg.net, env).to(run.device)
    actor = QuantileQActor(net, spec=spec, num_quantiles=cfg.net.num_policy_quantiles)
    egreedy = EpsilonGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    explorer = ActorSequential(actor, egreedy)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it learns: quantiles z(s, a, sigma_i) towards
    # r + alpha [tau ln pi(a|s)] + gamma sum_a' pi(a'|s') (z(s', a', sigma_j) - tau ln pi(a'|s')).
    loss = MunchausenIQNLoss(
        actor,
        tau=algo.tau,
        alpha=algo.alpha,
        clip_min=algo.clip_min,
        num_quantiles=cfg.net.num_quantiles,
        num_target_quantiles=cfg.net.num_target_quantiles,
        num_policy_quantiles=cfg.net.num_policy_quantiles,
        kappa=algo.kappa,
        reuse_quantiles=algo.reuse_quantiles,
        share_fractions=algo.share_fractions,
        weight_reduction=algo.weight_reduction,  # type: ignore[arg-type]
    ).make_value_estimator(gamma=algo.gamma)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the loss's temperature
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (sampled, ExplorationType.RANDOM)})
    target = HardTargetUpdate(loss, period_updates=algo.target_period_updates)

    # What it stores: transitions of n steps, sampled uniformly or by priority.
    schedule = EpsilonSchedule(egreedy, algo)
    learner = ValueLearner(run, algo, loss, target, schedule, frame_stack=frame_stack(cfg.env))

    # The loop
    for batch in learner.collect(env, explorer):
        learner.store(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
