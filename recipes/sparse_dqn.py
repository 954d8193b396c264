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

import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate, Munchausen, SparseDQNLoss
from torchrl_reg.training import NStep, RecipeConfig, Run, check_replay_learning, recipe, require


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit CartPole; env and paper presets change them."""

    total_frames: int = 60_000  # environment frames, frame skip included
    tau: float = 0.1  # temperature, reward units: one-hot as soon as the best action leads by it [L18: alpha]
    alpha: float = 0.0  # Munchausen weight; its bonus lies in [-alpha tau, 0], so there is nothing to clip
    gamma: float = 0.99  # discount
    n_steps: int = 1  # of the return
    learning_rate: float = 2e-3  # Adam
    anneal_learning_rate: bool = True  # linearly to 0 over the run: CartPole ends steadily; off in presets
    adam_eps: float = 1e-5
    loss_function: str = "smooth_l1"  # Huber, delta 1; also l2, l1
    batch_size: int = 32  # transitions
    replay_capacity: int = 50_000  # transitions
    learning_starts_frames: int = 1_000
    update_every_frames: float = 4  # frames per gradient update
    target_period_updates: int = 50  # updates between target copies
    eps_start: float = 1.0  # epsilon-greedy around the greedy action
    eps_end: float = 0.05  # more exploration solves CartPole sooner
    eps_frames: int = 10_000  # frames of linear annealing, once learning has started
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates; at least n_steps
    clip_rewards: bool = False  # to [-1, 1], in what is learnt from; reported returns stay raw

    def validate(self) -> None:
        require(self.tau > 0, "algo.tau", "> 0", self.tau)
        require(0 <= self.alpha <= 1, "algo.alpha", "in [0, 1]", self.alpha)
        check_replay_learning(self)


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

    # What it remembers: single transitions (or n-step ones), sampled uniformly.
    # Stacked images are stored frame by frame, a quarter of the memory; n-step rows skip frames and stay stacked.
    stack = frame_stack(cfg.env) if algo.n_steps == 1 else 1
    replay = run.replay(algo.replay_capacity, algo.batch_size, frame_stack=stack, num_envs=algo.num_envs)
    n_step = NStep(algo.n_steps, algo.gamma)

    # What it learns: q(s, a) towards r + alpha [tau g(a|s)] + gamma (<pi, q(s', .)> + tau / 2 (1 - sum pi^2)).
    loss = SparseDQNLoss(
        actor,
        tau=algo.tau,
        shaping=Munchausen(algo.alpha, clip_min=None) if algo.alpha > 0 else None,
        loss_function=algo.loss_function,
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
