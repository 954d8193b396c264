from __future__ import annotations

from dataclasses import dataclass

import pytest

from torchrl_reg.training import ConfigError, check_replay_learning
from torchrl_reg.training.loop.checks import without_effect


@dataclass
class _Algo:
    total_frames: int = 1_000
    learning_starts_frames: int = 200
    update_every_frames: float = 4
    target_period_updates: int = 200
    eps_start: float = 1.0
    eps_end: float = 0.1
    eps_frames: int = 800
    eps_starts_frames: int | None = None
    collect_steps: int = 1
    num_envs: int = 8


def test_a_run_that_never_learns_is_refused():
    check_replay_learning(_Algo(learning_starts_frames=996))
    with pytest.raises(ConfigError, match="learning_starts_frames must be < algo.total_frames = 1,000, .*, got 1000"):
        check_replay_learning(_Algo(learning_starts_frames=1_000))
    check_replay_learning(_Algo(update_every_frames=800))
    with pytest.raises(ConfigError, match="update_every_frames must be <= 800, .*, got 801"):
        check_replay_learning(_Algo(update_every_frames=801))


def test_environments_that_no_machine_could_build_are_refused():
    check_replay_learning(_Algo(num_envs=100_000))
    with pytest.raises(ConfigError, match=r"^algo.num_envs must be <= 100,000, got 100000000\.$"):
        check_replay_learning(_Algo(num_envs=100_000_000))


def test_settings_that_a_run_is_too_short_for():
    assert without_effect(_Algo()) == []
    assert without_effect(None) == []
    (period,) = without_effect(_Algo(target_period_updates=201))
    assert period == "algo.target_period_updates=201 has no effect: this run makes 200 updates"
    (epsilon,) = without_effect(_Algo(eps_frames=801))
    assert epsilon.startswith("algo.eps_end=0.1 is never reached: epsilon is annealed until frame 1,001")
    assert without_effect(_Algo(eps_frames=801, eps_start=0.1)) == []
    assert without_effect(_Algo(eps_frames=801, eps_starts_frames=199)) == []
    assert without_effect(_Algo(eps_frames=801, eps_starts_frames=200))
