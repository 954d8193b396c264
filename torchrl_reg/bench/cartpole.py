"""CartPole end to end: steps/s of our recipe beside typical scripts.

All use layers of 120 and 84 units, epsilon .1 and one thread. The clock starts at the first update.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

from torchrl_reg.bench import recipes
from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

TAU, ALPHA, CLIP, GAMMA, EPSILON = 0.03, 0.9, -1.0, 0.99, 0.1
STARTS = 1_000  # frames before the first update


def cartpole_tables(frames: int = 6_000, device: str = "cpu") -> list[Table]:
    """One table per ratio of updates to frames; every run collects ``frames`` frames."""
    return [_table(frames, device, every=10, batch=128), _table(frames, device, every=4, batch=32)]


def compiled_tables(frames: int = 12_000, device: str = "cpu") -> list[Table]:
    """The same with compiled updates; the time to compile, mostly from PyTorch's cache, is not counted."""
    return [_compiled_table(frames, device, every=10, batch=128), _compiled_table(frames, device, every=4, batch=32)]


def _compiled_table(frames: int, device: str, *, every: int, batch: int) -> Table:
    cases = _by_hand(frames, device, every, batch)
    for n in (8, 32):
        case = _recipe(frames, every, batch, n, compile=True, device=device)
        cases.append(Case(f"recipes/m_dqn.py compiled, {n} environments", case, _CLEANRL))
    return Table(f"CartPole, 1 update per {every} frames, batch {batch}", "steps/s", cases)


def seeds_tables(frames: int = 6_000, device: str = "cpu") -> list[Table]:
    """Eight seeds in one process beside one seed: steps/s of all together."""
    one = "recipes/m_dqn.py, one seed"
    cases = [
        Case(one, _recipe(frames, 4, 32, 8, device=device), one),
        Case("eight seeds together, run.seeds", _recipe(frames, 4, 32, 8, seeds=8, device=device), one),
        Case("the same compiled", _recipe(frames, 4, 32, 8, seeds=8, compile=True, device=device), one),
    ]
    return [Table("CartPole, 1 update per 4 frames, batch 32, 8 environments a seed", "steps/s", cases)]


_CLEANRL = "CleanRL's loop of dqn.py, written again"


def _by_hand(frames: int, device: str, every: int, batch: int) -> list[Case]:
    return [
        Case(_CLEANRL, partial(cleanrl_loop, frames, every, batch, device), _CLEANRL),
        Case("hand-written M-DQN, 8 environments", partial(hand_written, frames, every, batch, device), _CLEANRL),
    ]


def _table(frames: int, device: str, *, every: int, batch: int) -> Table:
    cases = _by_hand(frames, device, every, batch)
    if device == "cpu":
        stock = partial(torchrl_parts, frames // 2, every, batch)
        cases.append(Case("TorchRL's own parts, 1 environment", stock, _CLEANRL))
    for n in (1, 8, 32):
        measure = _recipe(frames, every, batch, n, device=device)
        cases.append(Case(f"recipes/m_dqn.py, {n} environment{'s' * (n > 1)}", measure, _CLEANRL))
    if importlib.util.find_spec("stable_baselines3") is not None:
        cases.append(Case("stable-baselines3 DQN", lambda: stable_baselines(frames, every, batch, device), _CLEANRL))
    return Table(f"CartPole, 1 update per {every} frames, batch {batch}", "steps/s", cases)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2))


Columns = list[tuple[tuple[int, ...], type]]
#: Observation, next observation, action, reward, terminated.
VECTORS: Columns = [((4,), np.float32), ((4,), np.float32), ((), np.int64), ((), np.float32), ((), np.float32)]


class Ring:
    """A NumPy replay buffer as in typical scripts: arrays, an index, and samples copied to torch, on ``device``."""

    def __init__(self, size: int, columns: Columns = VECTORS, device: str = "cpu") -> None:
        self.device = device
        self.arrays: list[np.ndarray] = [np.zeros((size, *shape), kind) for shape, kind in columns]
        self.at = self.count = 0

    def add(self, *columns: np.ndarray) -> None:
        where = (self.at + np.arange(len(columns[0]))) % len(self.arrays[0])
        for array, column in zip(self.arrays, columns, strict=True):
            array[where] = column
        self.at = int(where[-1] + 1) % len(self.arrays[0])
        self.count = min(self.count + len(columns[0]), len(self.arrays[0]))

    def sample(self, batch: int) -> list[Tensor]:
        rows = np.random.randint(self.count, size=batch)
        return [torch.from_numpy(array[rows]).to(self.device) for array in self.arrays]


def cleanrl_loop(frames: int, every: int, batch: int, device: str = "cpu") -> float:
    """Steps/s of the loop of CleanRL's ``dqn.py``: one environment, DQN, Adam, a copy of the target every 500 steps."""
    torch.set_num_threads(1)
    envs = SyncVectorEnv([lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))])
    q, target = network().to(device), network().to(device)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=2.5e-4)
    ring = Ring(10_000, device=device)
    observation, _ = envs.reset(seed=1)
    start = 0.0
    for step in range(frames):
        if step == STARTS:
            start = time.perf_counter()
        if np.random.rand() < EPSILON:
            actions = np.array([envs.single_action_space.sample()])
        else:
            actions = torch.argmax(q(torch.Tensor(observation).to(device)), dim=1).cpu().numpy()
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


def hand_written(frames: int, every: int, batch: int, device: str = "cpu", num_envs: int = 8) -> float:
    """Steps/s of Munchausen DQN in plain PyTorch over gymnasium's ``SyncVectorEnv``."""
    torch.set_num_threads(1)
    build = lambda: gymnasium.make("CartPole-v1", disable_env_checker=True)  # noqa: E731
    envs = SyncVectorEnv([build] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    q, target = network().to(device), network().to(device)
    target.load_state_dict(q.state_dict())
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3, fused=True)
    ring = Ring(50_000, device=device)
    observation, _ = envs.reset(seed=1)
    start, updates, earned = 0.0, 0, 0.0
    for step in range(0, frames, num_envs):
        if step >= STARTS and not start:
            start = time.perf_counter()
        with torch.no_grad():
            greedy = q(torch.from_numpy(observation).to(device)).argmax(1).cpu().numpy()
        explore = np.random.rand(num_envs) < EPSILON
        actions = np.where(explore, np.random.randint(2, size=num_envs), greedy)
        next_observation, reward, terminated, truncated, _ = envs.step(actions)
        ring.add(observation, next_observation, actions, reward, terminated)
        done = terminated | truncated
        observation = envs.reset(options={"reset_mask": done})[0] if done.any() else next_observation
        earned += num_envs / every if step >= STARTS else 0
        while updates < int(earned):
            loss = munchausen(q, target, *ring.sample(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
            if updates % 50 == 0:
                target.load_state_dict(q.state_dict())
    return (frames - STARTS) / (time.perf_counter() - start)


def munchausen(q: nn.Module, target: nn.Module, o: Tensor, o2: Tensor, a: Tensor, r: Tensor, end: Tensor) -> Tensor:
    with torch.no_grad():
        bonus = TAU * (target(o) / TAU).log_softmax(-1).gather(-1, a.unsqueeze(-1)).squeeze(-1)
        value = TAU * torch.logsumexp(target(o2) / TAU, -1)
        y = r + ALPHA * bonus.clamp(CLIP, 0.0) + GAMMA * (1 - end) * value
    return nn.functional.smooth_l1_loss(q(o).gather(-1, a.unsqueeze(-1)).squeeze(-1), y)


def stable_baselines(frames: int, every: int, batch: int, device: str = "cpu") -> float:
    """Steps/s of stable-baselines3's DQN; its warm-up counts towards ``frames`` but is not timed."""
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
        device=device,
    )
    model.learn(STARTS)
    start = time.perf_counter()
    model.learn(frames - STARTS, reset_num_timesteps=False)
    return (frames - STARTS) / (time.perf_counter() - start)


def torchrl_parts(frames: int, every: int, batch: int) -> float:
    """Steps/s of TorchRL's ``GymEnv``, ``Collector``, ``DQNLoss``, ``HardUpdate`` and buffer, one update per batch."""
    torch.set_num_threads(1)
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())
    actor = QValueActor(network(), spec=env.action_spec)
    explorer = TensorDictSequential(actor, EGreedyModule(env.action_spec, EPSILON, EPSILON, 1))
    loss = DQNLoss(actor, loss_function="l2", delay_value=True)
    loss.make_value_estimator(gamma=GAMMA)
    target = HardUpdate(loss, value_network_update_interval=50)
    optimizer = torch.optim.Adam(loss.parameters(), lr=2.5e-4)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(10_000), batch_size=batch)
    sizes = {"frames_per_batch": every, "total_frames": frames}
    # TorchRL warns if unset; the policy needs only what the environment gives.
    collector = Collector(env, explorer, **sizes, trust_policy=True, auto_register_policy_transforms=False)
    start, seen = 0.0, 0
    for data in collector:
        replay.extend(data.reshape(-1))
        seen += every
        if seen < STARTS:
            continue
        start = start or time.perf_counter()
        optimizer.zero_grad()
        loss(replay.sample())["loss"].backward()
        optimizer.step()
        target.step()
    rate = (seen - STARTS) / (time.perf_counter() - start)
    collector.shutdown()
    return rate


def _recipe(frames: int, every: int, batch: int, num_envs: int, **run: Any) -> Callable[[], float]:
    algo: dict[str, float] = {
        "total_frames": frames,
        "num_envs": num_envs,
        "update_every_frames": every,
        "batch_size": batch,
    }
    algo |= {"learning_starts_frames": STARTS, "eps_start": EPSILON, "eps_end": EPSILON}
    if num_envs == 1:
        algo["collect_steps"] = every  # then one update, as the script does
    parts = {"env": EnvSettings("cartpole"), "net": NetSettings(num_cells=[120, 84])}
    return recipes.speed("m_dqn", parts, algo, **run)
