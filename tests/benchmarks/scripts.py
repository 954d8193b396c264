"""Whole runs: CleanRL's loops and a hand-written M-DQN in plain PyTorch on one thread, and our recipes.

The clock starts at the first update.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn

from tests.benchmarks.measure import Measure
from torchrl_reg.lab.seeds.seeds_together import train_seeds

TAU, ALPHA, CLIP, GAMMA, EPSILON = 0.03, 0.9, -1.0, 0.99, 0.1
TRACE = 0.65
#: PQN as CleanRL and purejaxql run it: Peng's lambda-returns.
PENG = {"lmbda": TRACE, "correct": False, "time_limits_end": True, "optimizer": "radam", "max_grad_norm": 10.0}


@dataclass(frozen=True)
class Size:
    """A run: its steps, those before the first update, steps per update, and transitions per update."""

    steps: int
    starts: int
    every: int
    batch: int
    device: str = "cpu"


class Ring:
    """A replay buffer of tensors on ``device``; ``size`` must be a multiple of the rows added at once.

    A row is an observation, the next one, an action, a reward and whether it terminated.
    """

    def __init__(self, size: int, observation: np.ndarray, action: np.ndarray, device: str = "cpu") -> None:
        kinds = (observation, observation, action, np.zeros(1), np.zeros(1))
        kinds = [torch.from_numpy(kind.astype(np.float32) if kind.dtype == np.float64 else kind) for kind in kinds]
        self.columns = [kind.new_zeros((size, *kind.shape[1:]), device=device) for kind in kinds]
        self.size, self.at, self.count = size, 0, 0

    def add(self, *rows: np.ndarray) -> None:
        end = self.at + len(rows[0])
        for column, new in zip(self.columns, rows, strict=True):
            column[self.at : end] = torch.from_numpy(new)
        self.at, self.count = end % self.size, max(self.count, end)

    def sample(self, batch: int) -> list[Tensor]:
        rows = torch.randint(self.count, (batch,), device=self.columns[0].device)
        return [column.index_select(0, rows) for column in self.columns]


class NumpyRing(Ring):
    """CleanRL's buffer, which is stable-baselines3's: arrays, one row at a time, and samples copied to torch."""

    def __init__(self, size: int, observation: np.ndarray, action: np.ndarray, device: str = "cpu") -> None:
        super().__init__(size, observation, action)
        self.arrays, self.device = [column.numpy() for column in self.columns], device

    def add(self, *rows: np.ndarray) -> None:
        for column, new in zip(self.arrays, rows, strict=True):
            column[self.count % self.size] = new[0]
        self.count += 1

    def sample(self, batch: int) -> list[Tensor]:
        rows = np.random.randint(min(self.count, self.size), size=batch)
        return [torch.from_numpy(column[rows]).to(self.device) for column in self.arrays]


def cleanrl(envs: SyncVectorEnv, act: Callable[..., np.ndarray], learn: Callable[..., None], size: Size) -> float:
    """Steps/s of a loop of CleanRL's: one environment, a replay of arrays, the last observation of an episode kept.

    Args:
        envs: one environment.
        act: from a step and an observation to the action.
        learn: from a step and the replay buffer, at every step from ``size.starts`` on.
        size: of the run.
    """
    observation, _ = envs.reset(seed=1)
    ring = NumpyRing(min(10_000, size.steps), observation, envs.action_space.sample(), size.device)
    for step in range(size.steps):
        if step == size.starts:
            start = time.perf_counter()
        actions = act(step, observation)
        following, reward, terminated, truncated, infos = envs.step(actions)
        after = infos["final_obs"][0][None] if (terminated | truncated)[0] else following
        ring.add(observation, after, actions, reward, terminated)
        observation = following
        if step >= size.starts:
            learn(step, ring)
    envs.close()
    return (size.steps - size.starts) / (time.perf_counter() - start)


def cleanrl_dqn(envs: SyncVectorEnv, build: Callable[[], nn.Module], size: Size) -> float:
    """Steps/s of the loop of ``dqn.py`` and ``dqn_atari.py``: Adam, target copied every 500 steps."""
    q = build().to(size.device)
    target = copy.deepcopy(q)
    optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4)

    def act(step: int, observation: np.ndarray) -> np.ndarray:
        if np.random.rand() < EPSILON:
            return np.array([envs.single_action_space.sample()])
        return torch.argmax(q(torch.Tensor(observation).to(size.device)), dim=1).cpu().numpy()

    def learn(step: int, ring: NumpyRing) -> None:
        if step % size.every == 0:
            o, o2, a, r, end = ring.sample(size.batch)
            with torch.no_grad():
                y = r + GAMMA * target(o2).max(dim=1).values * (1 - end)
            descend(optimizer, nn.functional.mse_loss(y, q(o).gather(1, a.unsqueeze(1)).squeeze(1)))
        if step % 500 == 0:
            target.load_state_dict(q.state_dict())

    return cleanrl(envs, act, learn, size)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def m_dqn(game: Any, build: Callable[[], nn.Module], size: Size, period: int) -> float:
    """Steps/s of Munchausen DQN with fused Adam and a target copied every ``period`` updates.

    ``game`` is environments side by side; ``step`` gives s', reward, terminated, and where the next step starts from.
    """
    q = build().to(size.device)
    target = copy.deepcopy(q)
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3, fused=True)
    observation = game.reset()
    num_envs = len(observation)
    ring = Ring(10_000, observation, np.zeros(1, np.int64), size.device)
    start, updates, earned = 0.0, 0, 0.0
    for step in range(0, size.steps, num_envs):
        if step >= size.starts and not start:
            start = time.perf_counter()
        with torch.no_grad():
            greedy = q(torch.from_numpy(observation).to(size.device).float()).argmax(1).cpu().numpy()
        random = np.random.randint(game.num_actions, size=num_envs)
        actions = np.where(np.random.rand(num_envs) < EPSILON, random, greedy)
        after, reward, terminated, following = game.step(actions)
        ring.add(observation, after, actions, reward, terminated)
        observation = following
        earned += num_envs / size.every if step >= size.starts else 0
        while updates < int(earned):
            descend(optimizer, munchausen(q, target, *ring.sample(size.batch)))
            updates += 1
            if updates % period == 0:
                target.load_state_dict(q.state_dict())
    return (size.steps - size.starts) / (time.perf_counter() - start)


def munchausen(q: nn.Module, target: nn.Module, o: Tensor, o2: Tensor, a: Tensor, r: Tensor, end: Tensor) -> Tensor:
    """The loss of M-DQN, a scalar, on transitions ``[B]``."""
    o, o2 = o.float(), o2.float()
    with torch.no_grad():
        bonus = TAU * (target(o) / TAU).log_softmax(-1).gather(-1, a.unsqueeze(-1)).squeeze(-1)
        value = TAU * torch.logsumexp(target(o2) / TAU, -1)
        y = r + ALPHA * bonus.clamp(CLIP, 0.0) + GAMMA * (1 - end) * value
    return nn.functional.smooth_l1_loss(q(o).gather(-1, a.unsqueeze(-1)).squeeze(-1), y)


def recipe(name: str, parts: dict, size: Size, *, log_every=1_000, per_step=1, seeds=1, **more: Any) -> Measure:
    """Steps/s of ``recipes/<name>.py``: the median over its training rows once it learns, except the first.

    ``parts`` holds what its ``Config`` takes (``env``, ``net``, ``policy``), ``more`` settings of ``algo`` and ``run``;
    ``per_step`` is the number of frames per step. Several ``seeds`` are trained together and their steps added up.
    """
    first = per_step * size.starts + log_every
    run = {"progress": False, "evaluate_every_frames": 10**9, "checkpoint_every_frames": 10**9, "eval_episodes": 1}
    algo = {"total_frames": per_step * size.steps, "batch_size": size.batch}
    if name != "pqn":
        algo |= {"learning_starts_frames": per_step * size.starts, "update_every_frames": per_step * size.every}
    algo |= {"eps_start": EPSILON, "eps_end": EPSILON, "n_steps": 1} if name == "m_dqn" else {}
    settings = run | algo | {"log_every_frames": log_every, "device": size.device} | more

    def measure() -> float:
        module = importlib.import_module(f"recipes.{name}")
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            configs = [module.Config(**parts) for _ in range(seeds)]
            for seed, config in enumerate(configs):
                for key, value in (settings | {"dir": f"{folder}/{seed}", "seed": seed}).items():
                    part = config.algo if hasattr(config.algo, key) else config.run
                    assert hasattr(part, key), key
                    setattr(part, key, value)
                config.env.validate()
            train_seeds(module.train, configs)
            rows = [json.loads(line) for line in (Path(folder) / "0/metrics.jsonl").read_text().splitlines()]
        rates = [row["fps"] for row in rows if row["event"] == "train" and row["frames"] > first]
        if not rates:
            raise SystemExit(f"more frames must be run: {name} wrote no row of training after {first} frames.")
        return seeds * statistics.median(rates) / per_step

    return measure
