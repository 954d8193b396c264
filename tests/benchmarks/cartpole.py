"""Speed of whole runs on CartPole, compared with hand-written M-DQN, CleanRL's loop, TorchRL's parts and SB3.

All use layers of 120 and 84 units, epsilon .1 and one thread. The clock starts at the first update.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymEnv, RewardSum, TransformedEnv
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

from tests.benchmarks.measure import Measure, Table, main
from tests.benchmarks.scripts import EPSILON, GAMMA, Size, cleanrl_dqn, descend, m_dqn, recipe
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

STARTS = 1_000  # frames before the first update


def table(frames: int = 6_000, every: int = 4, batch: int = 32, device: str = "cpu") -> Table:
    """Steps/s on CartPole, an update of ``batch`` transitions every ``every`` frames.

    The time to compile, mostly from PyTorch's cache, is not counted.
    """
    size = Size(frames, STARTS, every, batch, device)
    cases = by_hand(size)
    if device == "cpu":
        cases["TorchRL's own parts, 1 environment"] = partial(torchrl_parts, size)
    for n in (1, 8, 32):
        cases[f"recipes/m_dqn.py, {n} environment{'s' * (n > 1)}"] = ours(size, n)
    for n in (1, 8, 32):
        cases[f"recipes/m_dqn.py compiled, {n} environment{'s' * (n > 1)}"] = ours(size, n, compile=True)
    if find_spec("stable_baselines3"):
        cases["stable-baselines3 DQN"] = partial(stable_baselines, size)
    return Table(f"CartPole, 1 update per {every} frames, batch {batch}", "steps/s", cases)


def by_hand(size: Size) -> dict[str, Measure]:
    return {
        "CleanRL's loop of dqn.py, written again": lambda: cleanrl_dqn(recorded("CartPole-v1"), network, size),
        "hand-written M-DQN, 1 environment": lambda: m_dqn(CartPoles(1), network, size, period=50),
        "hand-written M-DQN, 8 environments": lambda: m_dqn(CartPoles(8), network, size, period=50),
    }


def recorded(name: str) -> SyncVectorEnv:
    """One environment as CleanRL makes it."""
    build = lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make(name))  # noqa: E731
    return SyncVectorEnv([build], autoreset_mode=AutoresetMode.SAME_STEP)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2))


class CartPoles:
    num_actions = 2

    def __init__(self, count: int) -> None:
        build = partial(gymnasium.make, "CartPole-v1", disable_env_checker=True)
        self.envs = SyncVectorEnv([build] * count, autoreset_mode=AutoresetMode.DISABLED)

    def reset(self) -> np.ndarray:
        return self.envs.reset(seed=1)[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        after, reward, terminated, truncated, _ = self.envs.step(actions)
        done = terminated | truncated
        following = self.envs.reset(options={"reset_mask": done})[0] if done.any() else after
        return after, reward, terminated, following


def stable_baselines(size: Size) -> float:
    """Steps/s of stable-baselines3's DQN; its warm-up counts towards the steps but is not timed."""
    from stable_baselines3 import DQN

    options = {"learning_starts": size.starts, "train_freq": size.every, "batch_size": size.batch}
    options |= {"exploration_fraction": 1e-6, "exploration_final_eps": EPSILON, "device": size.device}
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [120, 84]}, **options)
    model.learn(size.starts)
    start = time.perf_counter()
    model.learn(size.steps - size.starts, reset_num_timesteps=False)
    return (size.steps - size.starts) / (time.perf_counter() - start)


def torchrl_parts(size: Size) -> float:
    """Steps/s of ``GymEnv``, ``Collector``, ``DQNLoss``, ``HardUpdate`` and buffer over half the frames."""
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())
    actor = QValueActor(network(), spec=env.action_spec)
    explorer = TensorDictSequential(actor, EGreedyModule(env.action_spec, EPSILON, EPSILON, 1))
    loss = DQNLoss(actor, loss_function="l2", delay_value=True)
    loss.make_value_estimator(gamma=GAMMA)
    target = HardUpdate(loss, value_network_update_interval=50)
    optimizer = torch.optim.Adam(loss.parameters(), lr=2.5e-4)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(10_000), batch_size=size.batch)
    frames: dict[str, Any] = {"frames_per_batch": size.every, "total_frames": size.steps // 2}
    # TorchRL warns if unset; the policy needs only what the environment gives.
    collector = Collector(env, explorer, **frames, trust_policy=True, auto_register_policy_transforms=False)
    start, seen = 0.0, 0
    for data in collector:
        replay.extend(data.reshape(-1))
        seen += size.every
        if seen >= size.starts:
            start = start or time.perf_counter()
            descend(optimizer, loss(replay.sample())["loss"])
            target.step()
    rate = (seen - size.starts) / (time.perf_counter() - start)
    collector.shutdown()
    return rate


def ours(size: Size, num_envs: int, **more: Any) -> Measure:
    """Steps/s of ``recipes/m_dqn.py``; with one environment a batch is followed by one update, as in the script."""
    parts = {"env": EnvSettings("cartpole"), "net": NetSettings(num_cells=[120, 84])}
    more |= {"collect_steps": size.every} if num_envs == 1 else {}
    return recipe("m_dqn", parts, size, num_envs=num_envs, **more)


if __name__ == "__main__":
    main(table)
