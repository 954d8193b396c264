"""Range checks of the settings that every recipe with a replay buffer has."""

from __future__ import annotations

from typing import Any

from torchrl_reg.training.errors import require

_POSITIVE = (
    *("total_frames", "learning_rate", "batch_size", "update_every_frames"),
    *("target_period_updates", "eps_frames", "num_envs", "n_steps"),
)


def check_replay_learning(algo: Any) -> None:
    """Checks the replay, schedule, exploration and optimizer settings of a recipe's ``algo``.

    Raises:
        ConfigError: one is out of range; the sentence names it.
    """
    for name in _POSITIVE:
        require(getattr(algo, name) > 0, f"algo.{name}", "> 0", getattr(algo, name))
    for name in ("adam_eps", "learning_starts_frames"):
        require(getattr(algo, name) >= 0, f"algo.{name}", ">= 0", getattr(algo, name))
    for name in ("gamma", "eps_start", "eps_end"):
        require(0 <= getattr(algo, name) <= 1, f"algo.{name}", "in [0, 1]", getattr(algo, name))
    require(algo.n_steps <= algo.collect_steps, "algo.collect_steps", f">= {algo.n_steps}", algo.collect_steps)
