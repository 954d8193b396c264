"""IQN: the distribution of returns by quantile regression at random fractions.

    python recipes/iqn.py
    python recipes/iqn.py env=minatar/breakout run.seed=1
    python recipes/iqn.py env=atari env.game=Pong +paper=dabney2018

Source: Dabney et al., "Implicit Quantile Networks for Distributional Reinforcement Learning", ICML 2018 [D18].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import NetSettings, QuantileQActor, quantile_network
from torchrl_reg.objectives import HardTargetUpdate, IQNLoss
from torchrl_reg.training import NStep, RecipeConfig, Run, check_replay_learning, recipe


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit CartPole; env and paper presets change them."""

    total_frames: int = 80_000  # environment frames, frame skip included
    kappa: float = 1.0  # Huber width of the quantile regression, reward units [D18]
    double_dqn: bool = False  # choose the next action with the online network
    gamma: float = 0.99  # discount [V20]
    n_steps: int = 1  # of the return
    learning_rate: float = 2e-3  # Adam
    anneal_learning_rate: bool = True  # linearly to 0 over the run: CartPole ends steadily; off in presets
    adam_eps: float = 1e-5  # 3.125e-4 in [C]: with a learning rate of 1e-3 CartPole stays unsolved (recipes/README.md)
    batch_size: int = 32  # transitions [D18]
    replay_capacity: int = 50_000  # transitions [C, CartPole]
    learning_starts_frames: int = 1_000
    update_every_frames: float = 4  # frames per gradient update [C]
    target_period_updates: int = 50  # updates between target copies
    eps_start: float = 1.0  # epsilon-greedy around the greedy action
    eps_end: float = 0.05  # .01 in [C]: more exploration solves CartPole sooner
    eps_frames: int = 10_000  # frames of linear annealing, once learning has started
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates; at least n_steps
    clip_rewards: bool = False  # to [-1, 1], in what is learnt from; reported returns stay raw

    def validate(self) -> None:
        check_replay_learning(self)


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
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": explorer})

    # What it remembers: single transitions (or n-step ones), sampled uniformly.
    # Stacked images are stored frame by frame, a quarter of the memory; n-step rows skip frames and stay stacked.
    stack = frame_stack(cfg.env) if algo.n_steps == 1 else 1
    replay = run.replay(algo.replay_capacity, algo.batch_size, frame_stack=stack, num_envs=algo.num_envs)
    n_step = NStep(algo.n_steps, algo.gamma)

    # What it learns: quantiles z(s, a, sigma_i) towards r + gamma z(s', a*, sigma_j), a* greedy in the mean.
    loss = IQNLoss(
        actor,
        num_quantiles=cfg.net.num_quantiles,
        num_target_quantiles=cfg.net.num_target_quantiles,
        num_policy_quantiles=cfg.net.num_policy_quantiles,
        kappa=algo.kappa,
        double_dqn=algo.double_dqn,
    ).make_value_estimator(gamma=algo.gamma)
    optimizer = torch.optim.Adam(
        loss.parameters(), lr=algo.learning_rate, eps=algo.adam_eps, fused=True, capturable=run.cudagraphs
    )
    target = HardTargetUpdate(loss, period_updates=algo.target_period_updates)
    update = run.make_update(loss, optimizer, target)

    # The loop
    run.track(loss=loss, optimizer=optimizer, target=target, replay=replay, n_step=n_step, exploration=egreedy)
    frames_per_batch = algo.num_envs * algo.collect_steps * frames_per_step(cfg.env)
    for batch in run.collect(env, explorer, total_frames=algo.total_frames, frames_per_batch=frames_per_batch):
        if algo.clip_rewards:
            batch["next", "reward"].clamp_(-1, 1)
        rows = n_step(batch).select(*loss.in_keys, "steps_to_next_obs", strict=False)
        replay.extend(rows.transpose(0, 1).reshape(-1))  # in order of time
        for minibatch in run.minibatches(replay, algo.update_every_frames, algo.learning_starts_frames):
            run.record(update(minibatch))
        if algo.anneal_learning_rate:
            optimizer.param_groups[0]["lr"] = run.annealed(algo.learning_rate, 0.0, algo.total_frames)
        egreedy.eps.fill_(run.annealed(algo.eps_start, algo.eps_end, algo.eps_frames, algo.learning_starts_frames))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
