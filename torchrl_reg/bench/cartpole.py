"""CartPole from end to end: steps/s of our recipe beside scripts of the kind people use.

All have a network of 120 and 84 units, epsilon .1 and one thread. The clock runs from the first update on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

TAU, ALPHA, CLIP, GAMMA, EPSILON = 0.03, 0.9, -1.0, 0.99, 0.1
STARTS = 1_000  # frames before the first update


def cartpole_tables(frames: int = 6_000) -> list[Table]:
    """One table for each ratio of updates to frames; every run collects ``frames`` frames."""
    return [_table(frames, every=10, batch=128), _table(frames, every=4, batch=32)]


def _table(frames: int, *, every: int, batch: int) -> Table:
    reference = "CleanRL's loop of dqn.py, written again"
    cases = [
        Case(reference, lambda: cleanrl_loop(frames, every, batch), reference),
        Case("hand-written M-DQN, 8 environments", lambda: hand_written(frames, every, batch), reference),
        *(
            Case(f"recipes/m_dqn.py, {n} environment{'s' * (n > 1)}", _recipe(frames, every, batch, n), reference)
            for n in (1, 8, 32)
        ),
    ]
    if importlib.util.find_spec("stable_baselines3") is not None:
        cases.append(Case("stable-baselines3 DQN", lambda: stable_baselines(frames, every, batch), reference))
    return Table(f"CartPole, 1 update per {every} frames, batch {batch}", "steps/s", cases)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2))


class Ring:
    """A NumPy replay buffer as scripts have them: arrays, an index, and samples copied to torch."""

    def __init__(self, size: int) -> None:
        self.arrays: list[np.ndarray] = [np.zeros((size, *shape), kind) for shape, kind in _COLUMNS]
        self.at = self.count = 0

    def add(self, *columns: np.ndarray) -> None:
        where = (self.at + np.arange(len(columns[0]))) % len(self.arrays[0])
        for array, column in zip(self.arrays, columns, strict=True):
            array[where] = column
        self.at = int(where[-1] + 1) % len(self.arrays[0])
        self.count = min(self.count + len(columns[0]), len(self.arrays[0]))

    def sample(self, batch: int) -> list[Tensor]:
        rows = np.random.randint(self.count, size=batch)
        return [torch.from_numpy(array[rows]) for array in self.arrays]


# Observation, next observation, action, reward, terminated.
_COLUMNS: list[tuple[tuple[int, ...], type]] = [((4,), np.float32)] * 2
_COLUMNS += [((), np.int64), ((), np.float32), ((), np.float32)]


def cleanrl_loop(frames: int, every: int, batch: int) -> float:
    """Steps/s of the loop of CleanRL's ``dqn.py``: one environment, DQN, Adam, a copy of the target every 500 steps."""
    torch.set_num_threads(1)
    envs = SyncVectorEnv([lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))])
    q, target = network(), network()
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4)
    ring = Ring(10_000)
    observation, _ = envs.reset(seed=1)
    start = 0.0
    for step in range(frames):
        if step == STARTS:
            start = time.perf_counter()
        if np.random.rand() < EPSILON:
            actions = np.array([envs.single_action_space.sample()])
        else:
            actions = torch.argmax(q(torch.Tensor(observation)), dim=1).numpy()
        next_observation, reward, terminated, _, _ = envs.step(actions)
        ring.add(observation, next_observation, actions, reward, terminated)
        observation = next_observation
        if step >= STARTS and step % every == 0:
            o, o2, a, r, end = ring.sample(batch)
            with torch.no_grad():
                y = r + GAMMA * target(o2).max(dim=1).values * (1 - end)
            loss = nn.functional.mse_loss(y, q(o).gather(1, a.unsqueeze(1)).squeeze(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 500 == 0:
            target.load_state_dict(q.state_dict())
    return (frames - STARTS) / (time.perf_counter() - start)


def hand_written(frames: int, every: int, batch: int, num_envs: int = 8) -> float:
    """Steps/s of Munchausen DQN in plain PyTorch over gymnasium's ``SyncVectorEnv``."""
    torch.set_num_threads(1)
    build = lambda: gymnasium.make("CartPole-v1", disable_env_checker=True)  # noqa: E731
    envs = SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    q, target = network(), network()
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3, fused=True)
    ring = Ring(50_000)
    observation, _ = envs.reset(seed=1)
    start, updates, earned = 0.0, 0, 0.0
    for step in range(0, frames, num_envs):
        if step >= STARTS and not start:
            start = time.perf_counter()
        with torch.no_grad():
            greedy = q(torch.from_numpy(observation)).argmax(1).numpy()
        explore = np.random.rand(num_envs) < EPSILON
        actions = np.where(explore, np.random.randint(2, size=num_envs), greedy)
        next_observation, reward, terminated, truncated, _ = envs.step(actions)
        ring.add(observation, next_observation, actions, reward, terminated)
        done = terminated | truncated
        observation = envs.reset(options={"reset_mask": done})[0] if done.any() else next_observation
        earned += num_envs / every if step >= STARTS else 0
        while updates < int(earned):
            loss = _munchausen(q, target, *ring.sample(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            if updates % 50 == 0:
                target.load_state_dict(q.state_dict())
    return (frames - STARTS) / (time.perf_counter() - start)


def _munchausen(q: nn.Module, target: nn.Module, o: Tensor, o2: Tensor, a: Tensor, r: Tensor, end: Tensor) -> Tensor:
    with torch.no_grad():
        bonus = TAU * (target(o) / TAU).log_softmax(-1).gather(-1, a.unsqueeze(-1)).squeeze(-1)
        value = TAU * torch.logsumexp(target(o2) / TAU, -1)
        y = r + ALPHA * bonus.clamp(CLIP, 0.0) + GAMMA * (1 - end) * value
    return nn.functional.smooth_l1_loss(q(o).gather(-1, a.unsqueeze(-1)).squeeze(-1), y)


def stable_baselines(frames: int, every: int, batch: int) -> float:
    """Steps/s of stable-baselines3's DQN, its start included in the frames but not in the time."""
    from stable_baselines3 import DQN

    torch.set_num_threads(1)
    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=STARTS,
        train_freq=every,
        batch_size=batch,
        exploration_fraction=1e-6,
        exploration_final_eps=EPSILON,
        policy_kwargs={"net_arch": [120, 84]},
        device="cpu",
    )
    model.learn(STARTS)
    start = time.perf_counter()
    model.learn(frames - STARTS, reset_num_timesteps=False)
    return (frames - STARTS) / (time.perf_counter() - start)


def _recipe(frames: int, every: int, batch: int, num_envs: int) -> Callable[[], float]:
    def run() -> float:
        recipe = recipe_module("m_dqn")
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            config = recipe.Config(env=EnvSettings("cartpole"), net=NetSettings(num_cells=[120, 84]))
            _assign(config.run, dir=f"{folder}/run", progress=False, device="cpu", eval_episodes=1)
            _assign(config.run, evaluate_every_frames=10**9, checkpoint_every_frames=10**9, log_every_frames=1_000)
            _assign(config.algo, total_frames=frames, num_envs=num_envs, update_every_frames=every, batch_size=batch)
            _assign(config.algo, learning_starts_frames=STARTS, eps_start=EPSILON, eps_end=EPSILON)
            config.env.validate()
            with contextlib.redirect_stderr(io.StringIO()):
                path = recipe.train(config)
            rows = [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]
        rates = [row["fps"] for row in rows if row["event"] == "train" and row["frames"] > STARTS + 1_000]
        return statistics.median(rates)

    return run


def _assign(settings: Any, **values: Any) -> None:
    for name, value in values.items():
        assert hasattr(settings, name), name
        setattr(settings, name, value)


def recipe_module(name: str) -> ModuleType:
    """The recipe ``name``, from the folder beside the package.

    Raises:
        AnalysisError: an installation without ``recipes/``, which comes with the source.
    """
    path = Path(__file__).parents[2] / "recipes" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise AnalysisError(f"bench needs recipes/{name}.py, which comes with the source, got an installation without.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their types up there
    spec.loader.exec_module(module)
    return module
