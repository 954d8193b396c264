"""Settings of Q-learning from replay that cannot learn are refused before a run begins."""

from __future__ import annotations

from typing import Any

import pytest

from torchrl_reg.lab import UserError, ValueLearning
from torchrl_reg.lab.learners.learner import unreachable_settings


def _algo(**options: Any) -> ValueLearning:
    small = {"total_frames": 1_000, "learning_starts_frames": 200, "target_period_updates": 200, "eps_frames": 800}
    return ValueLearning(**small | options)


@pytest.mark.parametrize(
    ("name", "possible", "impossible", "expected"),
    [
        ("learning_starts_frames", 996, 1_000, "< algo.total_frames = 1,000, to learn at all"),
        ("update_every_frames", 800, 801, "<= 800, the frames that learning lasts"),
        ("num_envs", 100_000, 100_000_000, "<= 100,000"),
        ("n_steps", 4, 0, "> 0"),
        ("gamma", 1.0, 1.1, r"in \[0, 1\]"),
        ("priority_exponent", 1.0, 1000.0, r"in \[0, 1\]"),
        ("importance_exponent", 0.0, 1.5, r"in \[0, 1\]"),
        ("adam_eps", 0.0, -0.1, ">= 0"),
        ("eps_off_frames", 0, -1, ">= 0, or null"),
        ("optimizer", "radam", "sgd", r"one of \('adam', 'radam', 'rmsprop'\)"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, possible: Any, impossible: Any, expected: str) -> None:
    _algo(**{name: possible}).validate()
    with pytest.raises(UserError, match=rf"^algo\.{name} must be {expected}, got {impossible!r}\.$"):
        _algo(**{name: impossible}).validate()


@pytest.mark.parametrize(
    ("options", "begin"),
    [
        ({}, []),
        ({"target_period_updates": 201}, ["algo.target_period_updates=201 has no effect: this run makes 200 updates"]),
        ({"eps_frames": 801}, ["algo.eps_end=0.05 is never reached: epsilon is annealed until frame 1,001"]),
        ({"eps_frames": 801, "eps_start": 0.05}, []),
        ({"eps_frames": 801, "eps_starts_frames": 199}, []),
        ({"eps_frames": 801, "eps_off_frames": 0}, []),
    ],
)
def test_settings_that_a_run_is_too_short_for(options: dict[str, Any], begin: list[str]) -> None:
    found = unreachable_settings(vars(_algo(**options)))
    assert [said[: len(start)] for said, start in zip(found, begin, strict=True)] == begin
