"""IQN: the distribution of returns by quantile regression at random fractions.

    python recipes/iqn.py
    python recipes/iqn.py env=minatar/breakout run.seed=1
    python recipes/iqn.py env=atari env.game=Pong +paper=dabney2018

Source: Dabney et al., "Implicit Quantile Networks for Distributional Reinforcement Learning", ICML 2018 [D18].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tensordict.nn import TensorDictSequential
from torchrl.envs.utils import ExplorationType
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import NetSettings, QuantileQActor, quantile_network
from torchrl_reg.objectives import HardTargetUpdate, IQNLoss
from torchrl_reg.training import EpsilonSchedule, RecipeConfig, Run, ValueLearner, ValueLearning, recipe


@dataclass
class Algo(ValueLearning):
    """Hyperparameters of the method; those of its replay, schedule, optimizer and exploration are ValueLearning's."""

    total_frames: int = 80_000  # environment frames, frame skip included
    kappa: float = 1.0  # Huber width of the quantile regression, reward units [D18]
    double_dqn: bool = False  # choose the next action with the online network

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

    # What acts: epsilon-greedy in the mean over quantiles. Evaluated greedy, and as it explores.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    net = quantile_network(cfg.net, env).to(run.device)
    actor = QuantileQActor(net, spec=spec, num_quantiles=cfg.net.num_policy_quantiles)
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    explorer = TensorDictSequential(actor, egreedy)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": (explorer, ExplorationType.RANDOM)})

    # What it learns: quantiles z(s, a, sigma_i) towards r + gamma z(s', a*, sigma_j), a* greedy in the mean.
    loss = IQNLoss(
        actor,
        num_quantiles=cfg.net.num_quantiles,
        num_target_quantiles=cfg.net.num_target_quantiles,
        num_policy_quantiles=cfg.net.num_policy_quantiles,
        kappa=algo.kappa,
        double_dqn=algo.double_dqn,
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
