"""How fast is learning without replay? `pqn.py` beside CleanRL's loop of its own, and beside our `m_dqn.py`."""

from __future__ import annotations

import time
from functools import partial

import gymnasium
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn

from tests.benchmarks import cartpole
from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import GAMMA, Size, recipe
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

ENVS, STEPS, BATCH, EPOCHS, TRACE = 4, 128, 128, 4, 0.65
NET = {"layer_norm": "image", "layer_norm_eps": 1e-5, "initialization": "orthogonal"}
IMAGES = {"layer_norm": "channels", "layer_norm_eps": 1e-6, "initialization": "he_normal", "image_divisor": 255.0}
PENG = {"lmbda": TRACE, "correct": False, "time_limits_end": True, "optimizer": "radam", "max_grad_norm": 10.0}


def tables(frames: int = 20_480) -> list[Table]:
    """Steps/s on CartPole (CleanRL's settings) and MinAtar Breakout (purejaxql's)."""
    size = Size(frames, starts=0, every=4, batch=BATCH)
    parts = {"env": EnvSettings("cartpole"), "net": NetSettings(num_cells=[120, 84], **NET)}
    ours = partial(
        recipe, "pqn", parts, size, log_every=2_048, num_envs=ENVS, collect_steps=STEPS, epochs=EPOCHS, **PENG
    )
    replayed = Size(frames // 2, cartpole.STARTS, every=4, batch=32)
    cases = {"CleanRL's loop of pqn.py, written again": lambda: cleanrl_pqn(frames), "recipes/pqn.py": ours()}
    cases |= {"recipes/pqn.py, ten seeds together": ours(seeds=10), "recipes/m_dqn.py": cartpole.ours(replayed, 8)}
    minatar = {"env": EnvSettings("minatar", game="breakout"), "net": NetSettings("minatar", num_cells=[128])}
    images = minatar | {"net": NetSettings("minatar", num_cells=[128], **IMAGES)}
    replayed = Size(4_000, 1_000, every=4, batch=32)
    large = Size(2 * frames, starts=0, every=4, batch=BATCH)
    games = {"recipes/m_dqn.py": recipe("m_dqn", minatar, replayed, log_every=500, num_envs=8, replay_capacity=10_000)}
    games["recipes/pqn.py"] = recipe(
        "pqn", images, large, log_every=4_096, num_envs=128, collect_steps=32, epochs=2, loss_function="half_l2", **PENG
    )
    return [Table("CartPole, PQN", "steps/s", cases), Table("MinAtar Breakout, PQN", "steps/s", games)]


def cleanrl_pqn(frames: int) -> float:
    """Steps/s of the loop of CleanRL's ``pqn.py``: four CartPoles, 128 steps, four epochs of four minibatches."""
    envs = SyncVectorEnv([lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))] * ENVS)
    q = _network()
    optimizer = torch.optim.RAdam(q.parameters(), lr=2.5e-4)
    observations, actions = torch.zeros(STEPS, ENVS, 4), torch.zeros(STEPS, ENVS, dtype=torch.long)
    rewards, dones, values = (torch.zeros(STEPS, ENVS) for _ in range(3))
    observation, done = torch.Tensor(envs.reset(seed=1)[0]), torch.zeros(ENVS)
    start = time.perf_counter()
    for _ in range(frames // (ENVS * STEPS)):
        for step in range(STEPS):
            observations[step], dones[step] = observation, done
            with torch.no_grad():
                predicted = q(observation)
                values[step], greedy = predicted.max(1)
            explores = torch.rand(ENVS) < 0.1
            actions[step] = torch.where(explores, torch.randint(0, 2, (ENVS,)), greedy)
            following, reward, terminated, truncated, _ = envs.step(actions[step].numpy())
            rewards[step] = torch.as_tensor(reward, dtype=torch.float)
            observation, done = torch.Tensor(following), torch.Tensor(np.logical_or(terminated, truncated))
        returns = _returns(q, observation, done, rewards, dones, values)
        _learn(q, optimizer, observations.flatten(0, 1), actions.flatten(), returns.flatten())
    envs.close()
    return frames / (time.perf_counter() - start)


def _returns(q: nn.Module, last: Tensor, done: Tensor, rewards: Tensor, dones: Tensor, values: Tensor) -> Tensor:
    returns = torch.zeros_like(rewards)
    with torch.no_grad():
        for t in reversed(range(STEPS)):
            if t == STEPS - 1:
                returns[t] = rewards[t] + GAMMA * q(last).max(1).values * (1 - done)
            else:
                mixed = TRACE * returns[t + 1] + (1 - TRACE) * values[t + 1]
                returns[t] = rewards[t] + GAMMA * mixed * (1 - dones[t + 1])
    return returns


def _learn(q: nn.Module, optimizer: torch.optim.Optimizer, o: Tensor, a: Tensor, returns: Tensor) -> None:
    order = np.arange(ENVS * STEPS)
    for _ in range(EPOCHS):
        np.random.shuffle(order)
        for first in range(0, ENVS * STEPS, BATCH):
            rows = order[first : first + BATCH]
            predicted = q(o[rows]).gather(1, a[rows].unsqueeze(-1)).squeeze()
            loss = nn.functional.mse_loss(returns[rows], predicted)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(q.parameters(), 10.0)
            optimizer.step()


def _network() -> nn.Sequential:
    layers = [nn.Linear(4, 120), nn.LayerNorm(120), nn.ReLU(), nn.Linear(120, 84), nn.LayerNorm(84), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(84, 2))


if __name__ == "__main__":
    main(tables)
