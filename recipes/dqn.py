"""DQN, on TorchRL's own loss: the baseline of this family.

    python recipes/dqn.py
    python recipes/dqn.py env=minatar/breakout run.seed=1
    python recipes/dqn.py env=atari env.game=Pong algo.double_dqn=true

Sources: Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015 [M15]; with Adam and the
Huber loss as in Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020 [V20], code [C].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate
from torchrl_reg.training import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; those of its replay, schedule, optimizer and exploration are ValueLearning's."""

    double_dqn: bool = False  # choose the next action with the online network
    loss_function: str = "smooth_l1"  # Huber, delta 1 [C]; also l2, l1

    def validate(self) -> None:
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

    # What it learns: q(s, a) towards r + gamma max_a' q(s', a').
    loss = DQNLoss(actor, loss_function=algo.loss_function, double_dqn=algo.double_dqn)
    loss.make_value_estimator(gamma=algo.gamma)
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
