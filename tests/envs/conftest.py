"""Environments of every family, and rollouts in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from torchrl_reg.envs import EnvSettings
from torchrl_reg.lab.run.packing import pack_arrays, unpack_arrays

# Short episodes, so that later resets happen; much stickiness, so that a stale action shows.
SHORT = {
    "cartpole": EnvSettings("cartpole", max_episode_frames=30),
    "acrobot": EnvSettings("acrobot", max_episode_frames=17),
    "mountaincar": EnvSettings("mountaincar", max_episode_frames=13),
    "lunarlander": EnvSettings("lunarlander", max_episode_frames=60),
    "pendulum": EnvSettings("pendulum", max_episode_frames=13),
    "mountaincar_continuous": EnvSettings("mountaincar_continuous", max_episode_frames=13),
    "multigoal": EnvSettings("multigoal", max_episode_frames=9),
    **{
        game: EnvSettings("minatar", game=game, max_episode_frames=40, sticky_actions=0.5)
        for game in ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
    },
    "atari": EnvSettings("atari", game="pong", max_episode_frames=80, noop_max=7),
    "square": EnvSettings("gridworld", game="square", max_episode_frames=9),
    "goals": EnvSettings("gridworld", game="goals", max_episode_frames=9),
    **{game: EnvSettings("mujoco", game=game, max_episode_frames=25) for game in ("hopper", "humanoid")},
    **{name: EnvSettings("gym", f"{name}-v1", max_episode_frames=13) for name in ("FrozenLake", "Pendulum")},
    "door": EnvSettings("adroit", game="door", max_episode_frames=9),
}


@pytest.fixture(params=SHORT)
def short(request: pytest.FixtureRequest) -> EnvSettings:
    """Settings of each family in turn, or of those that a test names with ``indirect``."""
    return SHORT[request.param]


@pytest.fixture
def restart() -> Callable[[EnvBase, int], TensorDictBase]:
    """``restart(env, seed)`` returns the first observations."""

    def reset(env: EnvBase, seed: int) -> TensorDictBase:
        env.set_seed(seed)
        return env.reset()

    return reset


@pytest.fixture
def walk() -> Callable[..., tuple[TensorDictBase, TensorDictBase]]:
    """``walk(env, state, steps, seed)``: random steps from ``state`` on, along time, and the next state.

    ``steps`` may also be the actions ``[T, N]``.
    """

    def play(env: EnvBase, state: TensorDictBase, steps: Any, seed: int = 0) -> tuple[TensorDictBase, TensorDictBase]:
        generator = torch.Generator().manual_seed(seed)
        spec = env.full_action_spec_unbatched["action"]
        rows = []
        for t in range(steps if isinstance(steps, int) else len(steps)):
            if not isinstance(steps, int):
                action = steps[t]
            elif spec.dtype.is_floating_point:
                low, high = spec.space.low, spec.space.high
                action = low + (high - low) * torch.rand(*env.batch_size, *spec.shape, generator=generator)
            else:
                action = torch.randint(spec.n, env.batch_size, generator=generator)
            row, state = env.step_and_maybe_reset(state.set("action", action))
            rows.append(row.clone())
        return torch.stack(rows, -1), state

    return play


@pytest.fixture
def side_by_side() -> Callable[..., np.ndarray]:
    """``side_by_side(ours, theirs, act, steps, seed)``: plays both and compares every number, from a reset or from the
    observations ``start`` on; returns the sums of rewards, terminated and truncated episodes."""

    def play(
        ours: VectorEnv, theirs: VectorEnv, act: Any, steps: int, seed: int | None = None, start: Any = None
    ) -> Any:
        got, expected = (env.reset(seed=seed)[0] if start is None else start for env in (ours, theirs))
        seen = np.zeros(3)
        for _ in range(steps):
            assert got.dtype == expected.dtype and np.array_equal(got, expected)
            actions = act(got)
            got, *scalars, _ = ours.step(actions)
            expected, reward, *flags, _ = theirs.step(actions)
            assert np.array_equal(got, expected)
            assert np.array_equal(scalars, [reward.astype(np.float32), *flags])
            seen += np.sum(scalars, 1)
            mask = flags[0] | flags[1]
            if mask.any():
                got, expected = (env.reset(options={"reset_mask": mask})[0] for env in (ours, theirs))
        return seen

    return play


@pytest.fixture
def through_a_file() -> Callable[[Any], Any]:
    """A snapshot as a checkpoint stores and loads it."""

    def stored(data: Any) -> Any:
        file = io.BytesIO()
        torch.save(pack_arrays(data), file)
        file.seek(0)
        return unpack_arrays(torch.load(file, weights_only=True))

    return stored
