"""Discrete VIREL: Q-learning whose Boltzmann policy is as hot as its Bellman error; random while wrong, then greedy.

    python recipes/virel_q.py
    python recipes/virel_q.py algo.beta_scale=null algo.tau=0.1
    python recipes/virel_q.py env=minatar/breakout run.seed=1

Source: Fellows, Mahajan, Rudner, Whiteson, "VIREL: A Variational Inference Framework for Reinforcement Learning",
NeurIPS 2019 [F19], which has continuous actions only: over discrete ones its E-step is exact, and no actor is needed.
``algo.beta_scale=null`` keeps the temperature at ``algo.tau``. Unlike soft DQN's the values hold no entropy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule, QValueActor

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import BoltzmannQActor, NetSettings, q_network
from torchrl_reg.objectives import DiscreteVIRELLoss, HardTargetUpdate
from torchrl_reg.training import NStep, RecipeConfig, Run, check_replay_learning, recipe, require


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit CartPole; env and paper presets change them."""

    total_frames: int = 60_000  # environment frames, frame skip included
    tau: float = 1.0  # temperature, reward units; where it starts, or stays if beta_scale is null
    beta_scale: float | None = 0.1  # temperature over half the mean squared TD error, 1 / reward units [F19: c]
    error_rate: float = 0.01  # of the running average of the error, per update
    tau_min: float = 1e-3  # floor of the temperature, reward units; ours
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
    eps_start: float = 1.0  # random actions instead of the Boltzmann policy's; 1 until learning starts
    eps_end: float = 0.0  # the temperature explores [F19]; .05 and epsilon-greedy in the other recipes
    eps_frames: int = 1_000  # frames of linear annealing, once learning has started
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates; at least n_steps
    clip_rewards: bool = False  # to [-1, 1], in what is learnt from; reported returns stay raw

    def validate(self) -> None:
        require(0 < self.tau < math.inf, "algo.tau", "finite and > 0", self.tau)
        scale = self.beta_scale
        require(scale is None or 0 < scale < math.inf, "algo.beta_scale", "finite and > 0, or null", scale)
        require(0 < self.error_rate <= 1, "algo.error_rate", "in (0, 1]", self.error_rate)
        require(0 < self.tau_min < math.inf, "algo.tau_min", "finite and > 0", self.tau_min)
        check_replay_learning(self)


@dataclass
class Config(RecipeConfig):
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    net: NetSettings = field(default_factory=NetSettings)
    algo: Algo = field(default_factory=Algo)


def train(cfg: Config) -> Path:
    algo = cfg.algo
    run = Run(cfg, frames_per_step=frames_per_step(cfg.env))

    # What acts: samples of softmax(q / tau), at the loss's temperature. Evaluated greedy, and sampled.
    env = make_env(cfg.env, algo.num_envs, device=run.device)
    spec = env.full_action_spec_unbatched["action"].to(run.device)
    actor = QValueActor(q_network(cfg.net, env).to(run.device), spec=spec)
    egreedy = EGreedyModule(spec, eps_init=algo.eps_start, eps_end=algo.eps_end, device=run.device)
    eval_env = make_env(cfg.env, cfg.run.eval_episodes, device=run.device)

    # What it remembers: single transitions (or n-step ones), sampled uniformly.
    # Stacked images are stored frame by frame, a quarter of the memory; n-step rows skip frames and stay stacked.
    stack = frame_stack(cfg.env) if algo.n_steps == 1 else 1
    replay = run.replay(algo.replay_capacity, algo.batch_size, frame_stack=stack, num_envs=algo.num_envs)
    n_step = NStep(algo.n_steps, algo.gamma)

    # What it learns: q(s, a) towards r + gamma sum_a' pi(a'|s') q(s', a'), pi = softmax(q / tau), tau = the error of q.
    loss = DiscreteVIRELLoss(
        actor,
        tau=algo.tau,
        beta_scale=algo.beta_scale,
        rate=algo.error_rate,
        tau_min=algo.tau_min,
        loss_function=algo.loss_function,
    ).make_value_estimator(gamma=algo.gamma)
    sampled = BoltzmannQActor(actor, regularizer=loss.regularizer)  # follows the temperature
    explorer = TensorDictSequential(sampled, egreedy)
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
            scalars = update(minibatch)
            loss.observe(scalars)
            run.record(scalars)
        if algo.anneal_learning_rate:
            optimizer.param_groups[0]["lr"] = run.annealed(algo.learning_rate, 0.0, algo.total_frames)
        egreedy.eps.fill_(run.annealed(algo.eps_start, algo.eps_end, algo.eps_frames, algo.learning_starts_frames))
    return run.finish()


main = recipe(Config, train)

if __name__ == "__main__":
    main()
