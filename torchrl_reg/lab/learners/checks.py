"""Range checks of the settings that every recipe with a replay buffer has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torchrl_reg.lab.errors import require
from torchrl_reg.lab.learners.optimizers import OPTIMIZERS
from torchrl_reg.lab.run.settings import MOST_ENVS

_POSITIVE = (
    *("total_frames", "learning_rate", "batch_size", "update_every_frames"),
    *("target_period_updates", "eps_frames", "num_envs", "collect_steps", "n_steps", "reward_scale"),
)
_EXPONENTS = ("priority_exponent", "importance_exponent", "importance_exponent_end")
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[float], bool]], ...] = (
    (_POSITIVE, "> 0", lambda value: value > 0),
    (("adam_eps", "learning_starts_frames", "eps_starts_frames"), ">= 0", lambda value: value >= 0),
    (("eps_off_frames",), ">= 0, or null", lambda value: value >= 0),
    (("max_grad_norm",), "> 0, or null", lambda value: value > 0),
    (("gamma", "eps_start", "eps_end", "rms_decay", *_EXPONENTS), "in [0, 1]", lambda value: 0 <= value <= 1),
    (("target_rate",), "in (0, 1]", lambda value: 0 < value <= 1),
)


def check_replay_learning(algo: Any) -> None:
    """Checks the replay, schedule, exploration and optimizer settings of a recipe's ``algo``, those it has.

    Raises:
        ConfigError: one is out of range; the sentence names it.
    """
    settings = vars(algo)
    for names, expected, holds in _RANGES:
        for name in (name for name in names if settings.get(name) is not None):
            require(holds(settings[name]), f"algo.{name}", expected, settings[name])
    num_envs = settings.get("num_envs", 1)
    require(num_envs <= MOST_ENVS, "algo.num_envs", f"<= {MOST_ENVS:,}", num_envs)
    _check_that_something_is_learnt(settings)
    n_steps = settings.get("n_steps", 1)
    require(n_steps <= algo.collect_steps, "algo.collect_steps", f">= {n_steps}", algo.collect_steps)
    weighted = settings.get("importance_exponent") or settings.get("importance_exponent_end")
    uniform = weighted and not settings.get("priority_exponent")
    require(not uniform, "algo.importance_exponent", "0 where algo.priority_exponent is 0", weighted)
    decay = settings.get("eps_decay", "linear")
    require(decay in ("linear", "exponential"), "algo.eps_decay", "linear or exponential", decay)
    reduction = settings.get("weight_reduction", "mean")
    require(reduction in ("normalized", "mean"), "algo.weight_reduction", "normalized or mean", reduction)
    optimizer = settings.get("optimizer", "adam")
    require(optimizer in OPTIMIZERS, "algo.optimizer", f"one of {OPTIMIZERS}", optimizer)
    losses = ("smooth_l1", "l2", "half_l2", "l1")
    chosen = settings.get("loss_function", "l2")
    require(chosen in losses, "algo.loss_function", f"one of {losses}", chosen)


def without_effect(algo: Any) -> list[str]:
    """A sentence on each setting of a recipe's ``algo`` that this run is too short for."""
    settings = settings_of(algo)
    found, updates = [], planned_updates(settings)
    period, total = settings.get("target_period_updates", 0), settings.get("total_frames", math.inf)
    if updates is not None and updates < period:
        found.append(f"algo.target_period_updates={period:,} has no effect: this run makes {updates:,} updates")
    starts = settings.get("eps_starts_frames")
    annealed = settings.get("learning_starts_frames", 0) if starts is None else starts
    annealed += settings.get("eps_frames", 0)
    if (
        settings.get("eps_decay") != "exponential"
        and settings.get("eps_off_frames") is None
        and annealed > total
        and settings.get("eps_start") != settings.get("eps_end")
    ):
        found.append(
            f"algo.eps_end={settings['eps_end']} is never reached: epsilon is annealed until frame {annealed:,}, "
            f"and this run ends at {total:,}"
        )
    return found


def _check_that_something_is_learnt(settings: Mapping[str, Any]) -> None:
    updates = planned_updates(settings)
    if updates is None:
        return
    total, starts = settings["total_frames"], settings.get("learning_starts_frames", 0)
    require(starts < total, "algo.learning_starts_frames", f"< algo.total_frames = {total:,}, to learn at all", starts)
    every = settings["update_every_frames"]
    require(updates > 0, "algo.update_every_frames", f"<= {total - starts:,}, the frames that learning lasts", every)


def settings_of(algo: Any) -> Mapping[str, Any]:
    """The settings of a recipe's ``algo`` by name; none where there is no ``algo``."""
    return vars(algo) if hasattr(algo, "__dict__") else {}


def planned_updates(settings: Mapping[str, Any]) -> int | None:
    """How many updates a run makes; None where settings do not determine it."""
    if not {"total_frames", "update_every_frames"} <= settings.keys():
        return None
    learning = max(0, settings["total_frames"] - settings.get("learning_starts_frames", 0))
    return int(learning // settings["update_every_frames"])
