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

import torch
from tensordict.nn import TensorDictSequential
from torchrl.modules import EGreedyModule

from torchrl_reg.envs import EnvSettings, frame_stack, frames_per_step, make_env
from torchrl_reg.modules import CategoricalQActor, NetSettings, q_network
from torchrl_reg.objectives import HardTargetUpdate, Munchausen, QLearningLoss
from torchrl_reg.regularizers import Entropy, HardMax
from torchrl_reg.training import NStep, RecipeConfig, Run, check_replay_learning, recipe, require


@dataclass
class Algo:
    """Hyperparameters: default, unit, source. The defaults suit CartPole; env and paper presets change them."""

    total_frames: int = 60_000  # environment frames, frame skip included
    tau: float = 0.0  # temperature, reward units; 0 is C51's maximum. .03 in [V20]
    alpha: float = 0.0  # Munchausen weight, with a temperature; .9 in [V20]
    clip_min: float | None = -1.0  # lower clip of tau ln pi, reward units [V20: l_0]; null: none
    gamma: float = 0.99  # discount [B17]
    n_steps: int = 1  # of the return [D]
    learning_rate: float = 2e-3  # Adam
    anneal_learning_rate: bool = True  # linearly to 0 over the run: CartPole ends steadily; off in presets
    adam_eps: float = 1e-5  # 3.125e-4 in [D]
    batch_size: int = 32  # transitions [D]
    replay_capacity: int = 50_000  # transitions
    learning_starts_frames: int = 1_000
    update_every_frames: float = 4  # frames per gradient update [D]
    target_period_updates: int = 50  # updates between target copies
    eps_start: float = 1.0  # epsilon-greedy around the greedy action
    eps_end: float = 0.05  # .01 in [D]
    eps_frames: int = 10_000  # frames of linear annealing, once learning has started
    num_envs: int = 8  # environments stepped together
    collect_steps: int = 4  # steps of each between two rounds of updates; at least n_steps
    clip_rewards: bool = False  # to [-1, 1], in what is learnt from; reported returns stay raw

    def validate(self) -> None:
        require(self.tau >= 0, "algo.tau", ">= 0", self.tau)
        with_tau = self.tau > 0 or self.alpha == 0
        require(with_tau, "algo.alpha", "0 unless algo.tau > 0, whose log-policy it weighs", self.alpha)
        require(0 <= self.alpha <= 1, "algo.alpha", "in [0, 1]", self.alpha)
        require(self.clip_min is None or self.clip_min <= 0, "algo.clip_min", "<= 0 or null", self.clip_min)
        check_replay_learning(self)


@dataclass
class Config(RecipeConfig):
    env: EnvSettings = field(default_factory=lambda: EnvSettings("cartpole"))
    # CartPole's returns reach 100, and a Munchausen term lets them fall to -100; image networks have the usual +-10.
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
    run.evaluate_with(eval_env, {"greedy": actor, "sampled": explorer})

    # What it remembers: single transitions (or n-step ones), sampled uniformly.
    # Stacked images are stored frame by frame, a quarter of the memory; n-step rows skip frames and stay stacked.
    stack = frame_stack(cfg.env) if algo.n_steps == 1 else 1
    replay = run.replay(algo.replay_capacity, algo.batch_size, frame_stack=stack, num_envs=algo.num_envs)
    n_step = NStep(algo.n_steps, algo.gamma)

    # What it learns: the law of r + alpha [tau ln pi(a|s)] + gamma (Z(s', a') - tau ln pi(a'|s')), a' ~ pi(.|s').
    loss = QLearningLoss(
        actor,
        regularizer=Entropy(algo.tau) if algo.tau > 0 else HardMax(),
        shaping=Munchausen(algo.alpha, algo.clip_min) if algo.alpha > 0 else None,
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
