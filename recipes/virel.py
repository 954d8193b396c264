"""VIREL: an actor-critic whose temperature is the Bellman error of its critic; random while wrong, greedy when right.

    python recipes/virel.py
    python recipes/virel.py algo.beta_scale=null algo.tau=0.2
    python recipes/virel.py env=mujoco/hopper +paper=fellows2019 run.seed=1

Source: Fellows, Mahajan, Rudner, Whiteson, "VIREL: A Variational Inference Framework for Reinforcement Learning",
NeurIPS 2019 [F19] and its released code [C]; [S] marks SAC's settings. ``algo.beta_scale=null`` keeps the
temperature at ``algo.tau``, as ``virel.py`` of the released code does; its ``beta.py`` adapts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torchrl.envs.utils import ExplorationType

from torchrl_reg.envs import EnvSettings, frames_per_step, make_env
from torchrl_reg.lab import PolicyLearner, PolicyLearning, RecipeConfig, Run, recipe, require
from torchrl_reg.modules import PolicySettings, policy, state_action_value_network, state_value_network
from torchrl_reg.objectives import PolyakTargetUpdate, VIRELLoss


@dataclass
class Algo(PolicyLearning):
    """Hyperparameters of the method; replay, schedule and optimizer are described in PolicyLearning."""

    tau: float = 1.0  # temperature, reward units; where it starts, or stays if beta_scale is null [C]
    beta_scale: float | None = 0.1  # temperature over the p-th part of the Bellman error, reward units^(1 - p) [F19: c]
    exponent: float = 2.0  # p of the Bellman error [C]
    error_rate: float = 0.01  # of the running average of the Bellman error, per update; 1 in [C]: the last batch alone
    error_batch: int | None = None  # transitions of the error, once replay holds more; null: the minibatch; 4096 in [C]
    error_network: str = "target"  # on whose value it bootstraps: target, or online [C]
    tau_min: float = 1e-3  # floor of the temperature, reward units; ours
    tau_max: float = 1e30  # upper bound of the temperature, reward units; ours
    value_network: bool = False  # critics bootstrap on a value network instead of sampled actions [C]
    num_critics: int = 2  # the minimum of their values is used [S]; 1 in [C]
    learning_rate: float = 1e-3  # Adam, of all networks
    batch_size: int = 256  # transitions
    replay_capacity: int = 100_000  # transitions
    mode: str = "td"  # of the critic: td [C], or em, the literal M-step of [F19]

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        scale = self.beta_scale
        require(scale is None or 0 < scale < math.inf, "algo.beta_scale", "finite and > 0, or null", scale)
        require(1 <= self.exponent < math.inf, "algo.exponent", "finite and >= 1", self.exponent)
        require(0 < self.error_rate <= 1, "algo.error_rate", "in (0, 1]", self.error_rate)
        require(self.error_batch is None or self.error_batch >= 1, "algo.error_batch", ">= 1 or null", self.error_batch)
        network = self.error_network
        require(network in ("target", "online"), "algo.error_network", "target or online", network)
        require(0 < self.tau_min < math.inf, "algo.tau_min", "finite and > 0", self.tau_min)
        require(self.tau_max >= self.tau_min, "algo.tau_max", f">= {self.tau_min}", self.tau_max)
        require(self.mode in ("td", "em"), "algo.mode", "td or em", self.mode)
        adapts = scale is not None and not self.value_network
        require(self.mode == "td" or adapts, "algo.mode", "td without a beta_scale or with a value_network", self.mode)
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [{"policy": "gaussian"}, {"env": "pendulum"}]

    env: EnvSettings = field(default_factory=lambda: EnvSettings("pendulum"))
    policy: PolicySettings = field(default_factory=lambda: PolicySettings("gaussian"))
    algo: Algo = field(default_factory=Algo)

    def validate(self) -> None:
        differentiable = self.policy.name in ("gaussian", "flow")
        require(differentiable, "policy.name", "gaussian or flow for VIREL", self.policy.name)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of the policy. Evaluated at its mode, and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    actor = policy(cfg.policy, env).to(run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (actor, ExplorationType.RANDOM)})

    # What it learns: Q(s, a) towards r + gamma min Q_target(s', a'), pi towards softmax(Q / tau), tau = the error of Q.
    loss = VIRELLoss(
        actor,
        [state_action_value_network(cfg.policy, env).to(run.device) for _ in range(algo.num_critics)],
        state_value_network(cfg.policy, env).to(run.device) if algo.value_network else None,
        tau=algo.tau,
        beta_scale=algo.beta_scale,
        exponent=algo.exponent,
        rate=algo.error_rate,
        tau_min=algo.tau_min,
        tau_max=algo.tau_max,
        mode=algo.mode,  # type: ignore[arg-type]
        error_network=algo.error_network,  # type: ignore[arg-type]
    ).make_value_estimator(gamma=algo.gamma)
    target = PolyakTargetUpdate(loss, rate=algo.target_rate)

    # What it stores: single transitions, sampled uniformly.
    learner = PolicyLearner(run, algo, loss, target)

    # The loop
    for batch in learner.collect(env, actor):
        learner.store(batch)
        for minibatch in learner.minibatches():
            scalars = learner.update(minibatch)
            if algo.error_batch is None:
                loss.observe(scalars)
            elif len(learner.replay) > algo.error_batch:
                loss.observe(loss.bellman_error(learner.replay.sample(algo.error_batch).to(run.device)))
            run.record(scalars)
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
