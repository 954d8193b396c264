"""Soft Q-learning with mutual-information regularization (MIRL), beside SQL, SQL_m and DQN in one framework.

    python recipes/mirl.py
    python recipes/mirl.py env=minatar/breakout algo.method=sql run.seed=1
    python recipes/mirl.py env=atari env.game=Seaquest +paper=graumoya2019

``algo.method``: ``dqn`` (hard maximum, uniform exploration), ``sql`` (soft value towards a fixed uniform prior),
``sql_m`` (SQL's target, MIRL's behaviour) or ``mirl`` (learns the prior, acts greedily in it and explores from it).

Source: Grau-Moya, Leibfried, Vrancx, "Soft Q-Learning with Mutual-Information Regularization", ICLR 2019 [G19]. Its
step sizes are not known to us; what is not marked [G19] is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torchrl.envs.utils import ExplorationType
from torchrl.objectives import LossModule

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.lab import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe, require
from torchrl_reg.modules import (
    ActionPrior,
    ActorSequential,
    EpsilonGreedyModule,
    NetSettings,
    PriorEGreedyModule,
    PriorUpdate,
    QActor,
    num_actions,
    prior_network,
    q_network,
)
from torchrl_reg.objectives import HardTargetUpdate, MutualInformationDQNLoss, QLearningLoss
from torchrl_reg.regularizers import BellmanErrorCoefficient, Coefficient

METHODS = ("dqn", "sql", "sql_m", "mirl")


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; replay, schedule, optimizer and exploration are described in ValueLearning."""

    method: str = "mirl"  # dqn, sql, sql_m or mirl
    beta: float = 1.0  # inverse temperature at the start, per unit of reward
    beta_rate: float = 0.001  # of beta towards 1 / (mean squared TD error), per update [G19: the rule]; 0 keeps beta
    beta_min: float = 0.1  # bounds of the adapted beta
    beta_max: float = 100.0
    prior_rate: float = 0.001  # of the prior towards the policy, per environment step [G19: a moving average]
    prior_keys: list[str] = field(default_factory=list)  # inputs of a state-dependent prior; empty: rho(a) alone
    prior_learning_rate: float = 1e-4  # Adam, of a state-dependent prior, which does not use prior_rate
    loss_function: str = "smooth_l1"  # Huber, delta 1; l2 in [G19]; also l1
    learning_rate: float = 2e-3  # Adam, annealed to 0
    batch_size: int = 32  # transitions
    replay_capacity: int = 50_000  # transitions
    eps_start: float = 1.0  # probability of a random action
    eps_end: float = 0.05
    eps_frames: int = 10_000  # frames of linear annealing

    def validate(self) -> None:
        require(self.method in METHODS, "algo.method", f"one of {', '.join(METHODS)}", self.method)
        require(0 < self.beta < float("inf"), "algo.beta", "a finite number > 0", self.beta)
        require(0 <= self.beta_rate <= 1, "algo.beta_rate", "in [0, 1], 0 keeping beta", self.beta_rate)
        bounds = (self.beta_min, self.beta_max)
        require(0 < bounds[0] <= bounds[1], "algo.beta_min and algo.beta_max", "0 < the first <= the second", bounds)
        inside = self.beta_rate == 0 or bounds[0] <= self.beta <= bounds[1] < float("inf")
        require(inside, "algo.beta", "in [algo.beta_min, algo.beta_max], finite, as it is adapted", self.beta)
        require(self.prior_learning_rate > 0, "algo.prior_learning_rate", "> 0", self.prior_learning_rate)
        require(0 < self.prior_rate <= 1, "algo.prior_rate", "in (0, 1]", self.prior_rate)
        fits = not self.prior_keys or self.method == "mirl"
        require(fits, "algo.prior_keys", "empty unless algo.method=mirl", list(self.prior_keys))
        super().validate()


@dataclass
class Config(RecipeConfig):
    defaults: ClassVar[list[Any]] = [
        *({"net": "mlp"}, {"env": "cartpole"}),
        *({"optional replay": "${env}"}, {"optional tuned": "mirl/${env}"}),
    ]

    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    net: NetSettings = field(default_factory=NetSettings)
    algo: Algo = field(default_factory=Algo)


def inverse_temperature(algo: Algo, device: torch.device) -> Coefficient:
    """beta, fixed or tracking 1 / (mean squared TD error)."""
    if algo.method == "dqn" or algo.beta_rate <= 0:
        return Coefficient(algo.beta, name="beta", device=device)
    low, high = algo.beta_min, algo.beta_max
    return BellmanErrorCoefficient(algo.beta, rate=algo.beta_rate, inverse=True, low=low, high=high, device=device)


def parameter_groups(loss: LossModule, state_prior: nn.Module | None, rate: float) -> list[dict[str, Any]]:
    """The optimizer's parameter groups; a state-dependent prior learns at ``rate``.

    A prior as fast as the values collapses onto one action, as it also chooses the exploration (NEGATIVE_RESULTS.md).
    """
    slow = [] if state_prior is None else list(state_prior.parameters())
    fast = [p for p in loss.parameters() if all(p is not other for other in slow)]
    return [{"params": fast}, *([{"params": slow, "lr": rate}] if slow else [])]


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: greedy in rho(a) exp(beta q(s, a)), and with probability epsilon a ~ rho. Evaluated greedy, and with
    # exploration. SQL's rho is uniform, so it acts as DQN does.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = QActor(q_network(cfg.net, env).to(run.device), spec=spec)
    beta = inverse_temperature(algo, run.device)
    uniform, learnt = (ActionPrior(num_actions(env), beta=beta, device=run.device) for _ in range(2))
    behaviour = learnt if algo.method in ("sql_m", "mirl") else uniform
    regularizer = learnt if algo.method == "mirl" else uniform
    state_prior = None
    if algo.prior_keys:
        state_prior = prior_network(cfg.net, env, algo.prior_keys).to(run.device)
    epsilon: dict[str, Any] = {"eps_init": algo.eps_start, "eps_end": algo.eps_end, "device": run.device}
    if algo.method == "dqn":
        exploration = EpsilonGreedyModule(spec, **epsilon)
    else:
        log_prior_key = "log_prior" if state_prior is not None else None
        exploration = PriorEGreedyModule(spec, behaviour, log_prior_key=log_prior_key, **epsilon)
    explorer = ActorSequential(actor, *([] if state_prior is None else [state_prior]), exploration)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": explorer, "sampled": (explorer, ExplorationType.RANDOM)})

    # What it learns: q(s, a) towards r + gamma (1/beta) ln sum_a' rho(a') exp(beta q(s', a')) (DQN: the maximum);
    # rho towards the policy on the states visited; beta towards 1 / (mean squared TD error).
    options: dict[str, Any] = {"loss_function": algo.loss_function, "weight_reduction": algo.weight_reduction}
    if algo.method == "dqn":
        loss = QLearningLoss(actor, **options)
    else:
        loss = MutualInformationDQNLoss(actor, prior=regularizer, prior_network=state_prior, **options)
    loss.make_value_estimator(gamma=algo.gamma)
    groups = parameter_groups(loss, state_prior, algo.prior_learning_rate)
    target = HardTargetUpdate(loss, period_updates=algo.target_period_updates)

    # What it stores: transitions of n steps, sampled uniformly or by priority.
    schedule = EpsilonSchedule(exploration, algo)
    learner = ValueLearner(run, algo, loss, target, schedule, frame_stack=frame_stack(cfg.env), parameters=groups)
    prior_update = None
    if behaviour is learnt and state_prior is None:
        prior_update = PriorUpdate(learnt, rate=algo.prior_rate)

    # The loop
    for batch in learner.collect(env, explorer):
        if prior_update is not None:  # at every step, also before learning starts (algorithm 1, line 5)
            prior_update(batch)
        learner.store(batch)
        for minibatch in learner.minibatches():
            scalars = learner.update(minibatch)
            if algo.method != "dqn":
                beta.observe(scalars["squared_td_error"])
            run.record(scalars)
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
