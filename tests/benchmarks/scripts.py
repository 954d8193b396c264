"""References for whole runs of Q-learning: CleanRL's loop and a hand-written M-DQN, in plain PyTorch on one thread.

The clock starts at the first update.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn

TAU, ALPHA, CLIP, GAMMA, EPSILON = 0.03, 0.9, -1.0, 0.99, 0.1
Columns = list[tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Size:
    """A run: its steps, those before the first update, steps per update, and transitions per update."""

    steps: int
    starts: int
    every: int
    batch: int
    device: str = "cpu"


def columns(observations: np.ndarray) -> Columns:
    """Observation, next observation, action, reward, terminated."""
    seen = (observations.shape[1:], torch.from_numpy(observations).dtype)
    return [seen, seen, ((), torch.int64), ((), torch.float32), ((), torch.float32)]


class Ring:
    """A replay buffer of tensors on ``device``; ``size`` must be a multiple of the rows added at once."""

    def __init__(self, size: int, columns: Columns, device: str = "cpu") -> None:
        self.columns = [torch.zeros((size, *shape), dtype=kind, device=device) for shape, kind in columns]
        self.size, self.at, self.count = size, 0, 0

    def add(self, *rows: np.ndarray) -> None:
        end = self.at + len(rows[0])
        for column, new in zip(self.columns, rows, strict=True):
            column[self.at : end] = torch.from_numpy(new)
        self.at, self.count = end % self.size, max(self.count, end)

    def sample(self, batch: int) -> list[Tensor]:
        rows = torch.randint(self.count, (batch,), device=self.columns[0].device)
        return [column.index_select(0, rows) for column in self.columns]


class NumpyRing:
    """CleanRL's buffer, which is stable-baselines3's: arrays, and samples copied to torch."""

    def __init__(self, size: int, columns: Columns, device: str = "cpu") -> None:
        self.columns = [torch.zeros((size, *shape), dtype=kind).numpy() for shape, kind in columns]
        self.size, self.at, self.count, self.device = size, 0, 0, device

    def add(self, *rows: np.ndarray) -> None:
        for column, new in zip(self.columns, rows, strict=True):
            column[self.at] = new[0]
        self.at, self.count = (self.at + 1) % self.size, min(self.count + 1, self.size)

    def sample(self, batch: int) -> list[Tensor]:
        rows = np.random.randint(self.count, size=batch)
        return [torch.from_numpy(column[rows]).to(self.device) for column in self.columns]


def cleanrl_dqn(envs: SyncVectorEnv, build: Callable[[], nn.Module], size: Size) -> float:
    """Steps/s of the loop of ``dqn.py`` and ``dqn_atari.py``: one environment, Adam, target copied every 500 steps."""
    torch.set_num_threads(1)
    q, target = build().to(size.device), build().to(size.device)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4)
    observation, _ = envs.reset(seed=1)
    ring = NumpyRing(min(10_000, size.steps), columns(observation), size.device)
    start = 0.0
    for step in range(size.steps):
        if step == size.starts:
            start = time.perf_counter()
        if np.random.rand() < EPSILON:
            actions = np.array([envs.single_action_space.sample()])
        else:
            actions = torch.argmax(q(torch.Tensor(observation).to(size.device)), dim=1).cpu().numpy()
        following, reward, terminated, truncated, infos = envs.step(actions)
        after = infos["final_obs"][0][None] if (terminated | truncated)[0] else following
        ring.add(observation, after, actions, reward, terminated)
        observation = following
        if step >= size.starts and step % size.every == 0:
            o, o2, a, r, end = ring.sample(size.batch)
            with torch.no_grad():
                y = r + GAMMA * target(o2).max(dim=1).values * (1 - end)
            descend(optimizer, nn.functional.mse_loss(y, q(o).gather(1, a.unsqueeze(1)).squeeze(1)))
        if step % 500 == 0:
            target.load_state_dict(q.state_dict())
    return (size.steps - size.starts) / (time.perf_counter() - start)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Game(Protocol):
    """Environments side by side; ``step`` gives s', reward, terminated, and where the next step starts from."""

    num_actions: int

    def reset(self) -> np.ndarray: ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, Any, Any, np.ndarray]: ...


def m_dqn(game: Game, build: Callable[[], nn.Module], size: Size, period: int) -> float:
    """Steps/s of Munchausen DQN with fused Adam and a target copied every ``period`` updates."""
    torch.set_num_threads(1)
    q, target = build().to(size.device), build().to(size.device)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3, fused=True)
    observation = game.reset()
    num_envs = len(observation)
    ring = Ring(10_000, columns(observation), size.device)
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
