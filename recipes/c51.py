"""C51: the distribution of returns on a grid of atoms; with a temperature and a Munchausen term, Munchausen C51.

    python recipes/c51.py
    python recipes/c51.py algo.tau=0.03 algo.alpha=0.9
    python recipes/c51.py env=minatar/breakout

Sources: Bellemare, Dabney, Munos, "A Distributional Perspective on Reinforcement Learning", ICML 2017 [B17], and
Dopamine's code [D]; the Munchausen form is ours, after Vieillard, Pietquin, Geist, NeurIPS 2020 [V20].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import CategoricalQActor, NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate, Munchausen, QLearningLoss
from torchrl_reg.regularizers import Entropy, HardMax
from torchrl_reg.training import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe, require


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; those of its replay, schedule, optimizer and exploration are ValueLearning's."""

    tau: float = 0.0  # temperature, reward units; 0 is C51's maximum. .03 in [V20]
    alpha: float = 0.0  # Munchausen weight, with a temperature; .9 in [V20]
    clip_min: float | None = -1.0  # lower clip of tau ln pi, reward units [V20: l_0]; null: none

    def validate(self) -> None:
        require(self.tau >= 0, "algo.tau", ">= 0", self.tau)
        with_tau = self.tau > 0 or self.alpha == 0
        require(with_tau, "algo.alpha", "0 unless algo.tau > 0, whose log-policy it weighs", self.alpha)
        require(0 <= self.alpha <= 1, "algo.alpha", "in [0, 1]", self.alpha)
        require(self.clip_min is None or self.clip_min <= 0, "algo.clip_min", "<= 0 or null", self.clip_min)
        super().validate()


@dataclass
class Config(RecipeConfig):
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    # CartPole's returns reach 100, and a Munchausen term lets them fall to -100; conf/net and conf/env have the others.
    net: NetSettings = field(default_factory=lambda: NetSettings(num_atoms=101, value_min=-100.0, value_max=100.0))
    algo: Algo = field(default_factory=Algo)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: epsilon-greedy in the means. Evaluated greedy, and as it explores.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = CategoricalQActor(
        q_network(cfg.net, env, cfg.net.num_atoms).to(run.device),
        num_atoms=cfg.net.num_atoms,
        value_min=cfg.net.value_min,
        value_max=cfg.net.value_max,
        spec=spec,
    )
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    explorer = TensorDictSequential(actor, egreedy)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (explorer, ExplorationType.RANDOM)})

    # What it learns: the law of r + alpha [tau ln pi(a|s)] + gamma (Z(s', a') - tau ln pi(a'|s')), a' ~ pi(.|s').
    loss = QLearningLoss(
        actor,
        regularizer=Entropy(algo.tau) if algo.tau > 0 else HardMax(),
        shaping=Munchausen(algo.alpha, algo.clip_min) if algo.alpha > 0 else None,
    ).make_value_estimator(gamma=algo.gamma)
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
