"""Walks in environments as training takes them, and MinAtar's own games."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_reg.envs.minatar import _minatar_environment

Walk = Callable[..., tuple[TensorDictBase, TensorDictBase]]


@pytest.fixture
def restart() -> Callable[[EnvBase, int], TensorDictBase]:
    """``restart(env, seed)`` returns the first observations."""

    def reset(env: EnvBase, seed: int) -> TensorDictBase:
        env.set_seed(seed)
        return env.reset()

    return reset


@pytest.fixture
def walk() -> Walk:
    """``walk(env, state, steps, seed)``: random steps from ``state`` on, along time, and the next state."""

    def play(env: EnvBase, state: TensorDictBase, steps: int, seed: int = 0) -> tuple[TensorDictBase, TensorDictBase]:
        generator = torch.Generator().manual_seed(seed)
        spec = env.full_action_spec_unbatched["action"]
        rows = []
        for _ in range(steps):
            if spec.dtype.is_floating_point:
                low, high = spec.space.low, spec.space.high
                action = low + (high - low) * torch.rand(*env.batch_size, *spec.shape, generator=generator)
            else:
                action = torch.randint(spec.n, env.batch_size, generator=generator)
            row, state = env.step_and_maybe_reset(state.set("action", action))
            rows.append(row.clone())
        return torch.stack(rows, -1), state

    return play


class PackageGame(gymnasium.Env):
    """One game of the MinAtar package as it is: what the batched games are compared with."""

    def __init__(self, game: str, *, sticky_actions: float, minimal_actions: bool = True, ramping: bool = True) -> None:
        self.game = _minatar_environment()(game, sticky_action_prob=sticky_actions, difficulty_ramping=ramping)
        self.actions = self.game.minimal_action_set() if minimal_actions else list(range(6))
        height, width, channels = self.game.state_shape()
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))
        self.observation_space = gymnasium.spaces.Box(0, 1, (channels, height, width), np.uint8)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.game.seed(seed)
            self.game.last_action = 0
        self.game.reset()
        return self.game.state().transpose(2, 0, 1).astype(np.uint8), {}

    def step(self, action):
        reward, terminated = self.game.act(self.actions[action])
        return self.game.state().transpose(2, 0, 1).astype(np.uint8), float(reward), bool(terminated), False, {}


@pytest.fixture
def package_game() -> type[PackageGame]:
    return PackageGame
