"""Sparse DQN: the sparsemax as bootstrap, whose policy leaves bad actions out; with ``algo.alpha`` its Munchausen form.

    python recipes/sparse_dqn.py
    python recipes/sparse_dqn.py algo.alpha=0.9
    python recipes/sparse_dqn.py env=minatar/breakout run.seed=1

Sources: Lee, Choi, Oh, "Sparse Markov Decision Processes with Causal Sparse Tsallis Entropy Regularization", RA-L 2018
[L18]; the Munchausen term is the deformed logarithm of the stored action (ours, after Vieillard et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate, Munchausen, SparseDQNLoss
from torchrl_reg.training import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe, require


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; those of its replay, schedule, optimizer and exploration are ValueLearning's."""

    tau: float = 0.1  # temperature, reward units: one-hot as soon as the best action leads by it [L18: alpha]
    alpha: float = 0.0  # Munchausen weight; its bonus lies in [-alpha tau, 0], so there is nothing to clip
    loss_function: str = "smooth_l1"  # Huber, delta 1; also l2, l1

    def validate(self) -> None:
        require(self.tau > 0, "algo.tau", "> 0", self.tau)
        require(0 <= self.alpha <= 1, "algo.alpha", "in [0, 1]", self.alpha)
        super().validate()


@dataclass
class Config(RecipeConfig):
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    net: NetSettings = field(default_factory=NetSettings)
    algo: Algo = field(default_factory=Algo)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: epsilon-greedy in the Q-network. Evaluated greedy, and sampled from softmax(q / tau).
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = QValueActor(q_network(cfg.net, env).to(run.device), spec=spec)
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    explorer = TensorDictSequential(actor, egreedy)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it learns: q(s, a) towards r + alpha [tau g(a|s)] + gamma (<pi, q(s', .)> + tau / 2 (1 - sum pi^2)).
    loss = SparseDQNLoss(
        actor,
        tau=algo.tau,
        shaping=Munchausen(algo.alpha, clip_min=None) if algo.alpha > 0 else None,
        loss_function=algo.loss_function,
    ).make_value_estimator(gamma=algo.gamma)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the loss's temperature
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (sampled, ExplorationType.RANDOM)})
    target = HardTargetUpdate(loss, period_updates=algo.target_period_updates)
    schedule = EpsilonSchedule(egreedy, algo)
    learner = ValueLearner(run, algo, loss, target, schedule, frame_stack=frame_stack(cfg.env))

    # The loop
    for batch in learner.collect(env, explorer):
        learner.remember(batch)
        for minibatch in learner.minibatches():
            run.record(learner.update(minibatch))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
