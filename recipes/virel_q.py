"""Discrete VIREL: Q-learning whose Boltzmann policy is as hot as its Bellman error; random while wrong, then greedy.

    python recipes/virel_q.py
    python recipes/virel_q.py algo.beta_scale=null algo.tau=0.1
    python recipes/virel_q.py env=minatar/breakout run.seed=1

Source: Fellows, Mahajan, Rudner, Whiteson, "VIREL: A Variational Inference Framework for Reinforcement Learning",
NeurIPS 2019 [F19], which has continuous actions only: over discrete ones its E-step is exact, and no actor is needed.
``algo.beta_scale=null`` keeps the temperature at ``algo.tau``. Unlike soft DQN's the values hold no entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import DiscreteVIRELLoss, HardTargetUpdate
from torchrl_reg.training import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe, require


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; those of its replay, schedule, optimizer and exploration are ValueLearning's.

    With probability epsilon a random action replaces the Boltzmann policy's.
    """

    tau: float = 1.0  # temperature, reward units; where it starts, or stays if beta_scale is null
    beta_scale: float | None = 0.1  # temperature over half the mean squared TD error, 1 / reward units [F19: c]
    error_rate: float = 0.01  # of the running average of the error, per update
    tau_min: float = 1e-3  # floor of the temperature, reward units; ours
    loss_function: str = "smooth_l1"  # Huber, delta 1; also l2, l1
    eps_end: float = 0.0  # the temperature explores [F19]; .05 and epsilon-greedy in the other recipes
    eps_frames: int = 1_000  # frames of linear annealing, once learning has started

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        scale = self.beta_scale
        require(scale is None or 0 < scale < math.inf, "algo.beta_scale", "finite and > 0, or null", scale)
        require(0 < self.error_rate <= 1, "algo.error_rate", "in (0, 1]", self.error_rate)
        require(0 < self.tau_min < math.inf, "algo.tau_min", "finite and > 0", self.tau_min)
        super().validate()


@dataclass
class Config(RecipeConfig):
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    net: NetSettings = field(default_factory=NetSettings)
    algo: Algo = field(default_factory=Algo)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of softmax(q / tau), at the loss's temperature. Evaluated greedy, and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = QValueActor(q_network(cfg.net, env).to(run.device), spec=spec)
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it learns: q(s, a) towards r + gamma sum_a' pi(a'|s') q(s', a'), pi = softmax(q / tau), tau = the error of q.
    loss = DiscreteVIRELLoss(
        actor,
        tau=algo.tau,
        beta_scale=algo.beta_scale,
        rate=algo.error_rate,
        tau_min=algo.tau_min,
        loss_function=algo.loss_function,
    ).make_value_estimator(gamma=algo.gamma)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the temperature
    explorer = TensorDictSequential(sampled, egreedy)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (sampled, ExplorationType.RANDOM)})
    target = HardTargetUpdate(loss, period_updates=algo.target_period_updates)
    schedule = EpsilonSchedule(egreedy, algo)
    learner = ValueLearner(run, algo, loss, target, schedule, frame_stack=frame_stack(cfg.env))

    # The loop
    for batch in learner.collect(env, explorer):
        learner.remember(batch)
        for minibatch in learner.minibatches():
            scalars = learner.update(minibatch)
            loss.observe(scalars)
            run.record(scalars)
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
