"""Advantage learning: DQN whose reward is lowered by the action's advantage gap (the tau -> 0 limit of M-DQN).

    python recipes/al_dqn.py
    python recipes/al_dqn.py algo.persistent=true
    python recipes/al_dqn.py env=atari env.game=Pong +paper=vieillard2020

Sources: Bellemare et al., "Increasing the Action Gap", AAAI 2016 [B16]; as a baseline in Vieillard, Pietquin, Geist,
"Munchausen Reinforcement Learning", NeurIPS 2020 [V20], code [C].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.objectives import AdvantageLearningLoss, HardTargetUpdate
from torchrl_reg.training import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe, require


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; those of its replay, schedule, optimizer and exploration are ValueLearning's."""

    alpha: float = 0.9  # weight of the gap; 0 is DQN [B16, C]
    persistent: bool = False  # the smaller of the gaps at s and s' [B16]
    loss_function: str = "smooth_l1"  # Huber, delta 1 [C]; also l2, l1

    def validate(self) -> None:
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

    # What acts: epsilon-greedy in the Q-network. Evaluated greedy, and as it explores.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = QValueActor(q_network(cfg.net, env).to(run.device), spec=spec)
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    explorer = TensorDictSequential(actor, egreedy)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (explorer, ExplorationType.RANDOM)})

    # What it learns: q(s, a) towards r + gamma max_a' q(s', a') - alpha (max_b q(s, b) - q(s, a)).
    loss = AdvantageLearningLoss(
        actor, alpha=algo.alpha, persistent=algo.persistent, loss_function=algo.loss_function
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
