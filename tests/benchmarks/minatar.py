"""Speed of whole runs on MinAtar Breakout, with and without replay, compared with hand-written M-DQN.

One convolution and 128 hidden units; PQN by the settings of purejaxql.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from tests.benchmarks.measure import Table, main
from tests.benchmarks.scripts import PENG, Size, m_dqn, recipe
from torchrl_reg.envs import EnvSettings
from torchrl_reg.modules import NetSettings

PQN_NET = {"layer_norm": "channels", "layer_norm_eps": 1e-6, "initialization": "he_normal", "image_divisor": 255.0}


def table(frames: int = 3_000, device: str = "cpu") -> Table:
    """Steps/s on MinAtar Breakout."""
    size = Size(frames, starts=500, every=4, batch=32, device=device)
    cases = {"hand-written M-DQN, 8 environments": lambda: m_dqn(Breakouts(8), network, size, period=250)}
    parts = {"env": EnvSettings("minatar", game="breakout"), "net": NetSettings("minatar", num_cells=[128])}
    for n in (8, 32):
        how = {"log_every": 500, "num_envs": n, "replay_capacity": 10_000}
        cases[f"recipes/m_dqn.py, {n} environments"] = recipe("m_dqn", parts, size, **how)
        if device == "cpu":
            cases[f"recipes/m_dqn.py compiled, {n} environments"] = recipe("m_dqn", parts, size, compile=True, **how)
    rollouts = Size(10 * frames, starts=0, every=4, batch=128, device=device)
    parts |= {"net": NetSettings("minatar", num_cells=[128], **PQN_NET)}
    pqn = {"num_envs": 128, "collect_steps": 32, "epochs": 2, "loss_function": "half_l2", **PENG}
    cases["recipes/pqn.py, 128 environments"] = recipe("pqn", parts, rollouts, log_every=4_096, **pqn)
    return Table("MinAtar Breakout, M-DQN with 1 update per 4 steps, batch 32", "steps/s", cases)


def network() -> nn.Sequential:
    hidden = [nn.Linear(16 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, Breakouts.num_actions)]
    return nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), *hidden)


class Breakouts:
    num_actions = 3

    def __init__(self, count: int) -> None:
        from minatar import Environment

        self.envs = [Environment("breakout", sticky_action_prob=0.1) for _ in range(count)]
        self.actions = np.array(self.envs[0].minimal_action_set())

    def reset(self) -> np.ndarray:
        for env in self.envs:
            env.reset()
        return self._images()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        results = [env.act(self.actions[a]) for env, a in zip(self.envs, actions, strict=True)]
        rewards, ended = map(np.array, zip(*results, strict=True))
        after = self._images()
        for env in np.array(self.envs)[ended]:
            env.reset()
        return after, rewards, ended, self._images() if ended.any() else after

    def _images(self) -> np.ndarray:
        return np.stack([env.state().transpose(2, 0, 1) for env in self.envs]).astype(np.uint8)


if __name__ == "__main__":
    main(table)
