"""Munchausen IQN: quantile regression towards the soft target, with a scaled log-policy added to the reward.

    python recipes/m_iqn.py
    python recipes/m_iqn.py env=atari env.game=Breakout
    python recipes/m_iqn.py env=atari env.game=Pong +paper=vieillard2020

Sources: Vieillard, Pietquin, Geist, "Munchausen Reinforcement Learning", NeurIPS 2020 [V20], and its released code [C];
Dabney et al., "Implicit Quantile Networks", ICML 2018 [D18].
Expect an evaluation return above 475 on CartPole-v1 within 100k frames (recipes/README.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, QuantileQActor, quantile_network
from torchrl_reg.objectives import HardTargetUpdate, MunchausenIQNLoss
from torchrl_reg.training import NStep, RecipeConfig, Run, check_replay_learning, recipe, require


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit CartPole; env and paper presets change them."""

    total_frames: int = 80_000  # environment frames, frame skip included
    tau: float = 0.03  # temperature, reward units [V20]
    alpha: float = 0.9  # Munchausen weight; 0 is soft IQN [V20]
    clip_min: float | None = -1.0  # lower clip of tau ln pi, reward units [V20: l_0]; null: none
    kappa: float = 1.0  # Huber width of the quantile regression, reward units [D18]
    reuse_quantiles: bool = False  # the policy at s' from the target quantiles: faster, not the papers'
    gamma: float = 0.99  # discount [V20]
    n_steps: int = 1  # of the return; the released code uses 1, the paper's M-IQN reportedly 3
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
        require(self.tau > 0, "algo.tau", "> 0", self.tau)
        require(0 <= self.alpha <= 1, "algo.alpha", "in [0, 1]", self.alpha)
        require(self.clip_min is None or self.clip_min <= 0, "algo.clip_min", "<= 0 or null", self.clip_min)
        check_replay_learning(self)


@dataclass
class Config(RecipeConfig):
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
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    explorer = TensorDictSequential(actor, egreedy)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it remembers: single transitions (or n-step ones), sampled uniformly.
    # Stacked images are stored frame by frame, a quarter of the memory; n-step rows skip frames and stay stacked.
    stack = frame_stack(cfg.env) if algo.n_steps == 1 else 1
    replay = run.replay(algo.replay_capacity, algo.batch_size, frame_stack=stack, num_envs=algo.num_envs)
    n_step = NStep(algo.n_steps, algo.gamma)

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
    ).make_value_estimator(gamma=algo.gamma)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the loss's temperature
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": sampled})
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
