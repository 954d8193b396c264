"""Range checks of the settings that every recipe with a replay buffer has."""

from __future__ import annotations

from typing import Any

from torchrl_reg.training.errors import require

_POSITIVE = (
    *("total_frames", "learning_rate", "batch_size", "update_every_frames"),
    *("target_period_updates", "eps_frames", "num_envs", "collect_steps", "n_steps"),
)
_NOT_NEGATIVE = ("adam_eps", "learning_starts_frames")
_PROBABILITIES = ("gamma", "eps_start", "eps_end")


def check_replay_learning(algo: Any) -> None:
    """Checks the replay, schedule, exploration and optimizer settings of a recipe's ``algo``, those it has.

    Raises:
        ConfigError: one is out of range; the sentence names it.
    """
    settings = vars(algo)
    for name in (name for name in _POSITIVE if name in settings):
        require(settings[name] > 0, f"algo.{name}", "> 0", settings[name])
    for name in (name for name in _NOT_NEGATIVE if name in settings):
        require(settings[name] >= 0, f"algo.{name}", ">= 0", settings[name])
    for name in (name for name in _PROBABILITIES if name in settings):
        require(0 <= settings[name] <= 1, f"algo.{name}", "in [0, 1]", settings[name])
    rate = settings.get("target_rate", 1.0)
    require(0 < rate <= 1, "algo.target_rate", "in (0, 1]", rate)
    n_steps = settings.get("n_steps", 1)
    require(n_steps <= algo.collect_steps, "algo.collect_steps", f">= {n_steps}", algo.collect_steps)
    losses = ("smooth_l1", "l2", "l1")
    chosen = settings.get("loss_function", "l2")
    require(chosen in losses, "algo.loss_function", f"one of {losses}", chosen)
