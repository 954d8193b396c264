"""Judges the health of a run, finished or not, from its record: numbers, values, bonus, exploration, targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchrl_reg.lab.analysis.documents import AnalysisError, read_yaml
from torchrl_reg.lab.analysis.runs import Row, Tail, is_number
from torchrl_reg.lab.analysis.sweeps import failure
from torchrl_reg.lab.doctor.machine import Finding

#: A value this many times beyond what returns and entropy can make of it has exploded.
EXPLOSION = 10.0
#: Share of clipped bonuses from which on the clip, and not the policy, decides the bonus.
CLIPPED_SHARE = 0.5
#: Share of the soft value's samples that count, from which on it rests on one of them.
COLLAPSED_SHARE = 0.1
#: Copies of the target network that a run needs at least.
FEWEST_COPIES = 5
# Training rows, with episodes that all returned the same, from which on that is no accident.
_SAME_ROWS = 10
_EXPLODED = "values explode: lower the learning rate, or copy the target less often"
_IN_REWARD_UNITS = ("td_error", "action_gap", "soft_gap", "bonus", "value")


def record_findings(folder: Path, config: dict[str, Any]) -> Iterator[Finding]:
    """One finding on each aspect of the run in ``folder`` that can be judged, given its settings ``config``."""
    algo = {name: value for name, value in (config.get("algo") or {}).items() if is_number(value)}
    rows = read_rows(folder)
    train = [row for row in rows if row["event"] == "train"]
    if said := failure(folder):
        yield Finding("end", "warn", f"the run stopped itself: {said['last_line']}")
    if train:
        yield _numbers(train)
        yield from _learning(train, algo)
        judged = (_values(rows, train, algo), _bonus(train), _samples(train, algo), _exploration(train, algo))
        yield from filter(None, judged)


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        AnalysisError: the file does not hold those of a run.
    """
    loaded = read_yaml(path)
    if not isinstance(loaded, dict) or not isinstance(loaded.get("env"), dict):
        raise AnalysisError(f"{path} must hold the env of a recipe, got none.")
    return loaded


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run's ``metrics.jsonl``; lines that are not rows (one still being written) are skipped."""
    return list(Tail(folder / "metrics.jsonl").rows())


def numbers_in(rows: list[Row], name: str) -> list[float]:
    """The values of a column, without what is no number."""
    return [row[name] for row in rows if is_number(row.get(name))]


def _numbers(train: list[Row]) -> Finding:
    bad = [row for row in train if any(row[n] is None for n in row if n.startswith("loss") or n in _IN_REWARD_UNITS)]
    if not bad:
        return Finding("numbers", "ok", f"the losses of all {len(train)} training rows are finite")
    detail = f"{len(bad)} of {len(train)} training rows are not finite, the first at frame {bad[0]['frames']:,}"
    todo = "everything after it is worthless; lower the learning rate or clip gradients"
    return Finding("numbers", "warn", detail, todo)


def _learning(train: list[Row], algo: dict[str, float]) -> Iterator[Finding]:
    """Whether there were updates, and enough of them for the target network to move."""
    updates, frames = train[-1].get("updates"), train[-1]["frames"]
    starts, total = algo.get("learning_starts_frames", 0), algo.get("total_frames", math.inf)
    if not is_number(updates):
        return
    if not updates:
        never = starts >= total
        todo = f"learning_starts_frames={starts:,} is not before total_frames={total:,}" if never else ""
        yield Finding("learning", "warn" if never or frames > starts else "ok", f"no update in {frames:,} frames", todo)
        return
    yield Finding("learning", "ok", f"{updates:,} updates in {frames:,} frames")
    if "target_period_updates" in algo:
        period, planned = algo["target_period_updates"], int(updates)
        if total < math.inf and algo.get("update_every_frames", 0) > 0:
            planned = max(planned, int((total - starts) / algo["update_every_frames"]))
        copies = int(planned // period)
        detail = f"a copy every {period:,} updates, which makes {copies:,} in the {planned:,} updates of this run"
        todo = "" if copies >= FEWEST_COPIES else f"lower target_period_updates, to {max(1, planned // 100):,} say"
        yield Finding.judged("target network", detail, todo)


def _values(rows: list[Row], train: list[Row], algo: dict[str, float]) -> Finding | None:
    """Whether learnt values have a magnitude that the returns and the entropy term allow."""
    if diverged := numbers_in(train, "diverged_frames"):
        detail = f"they outgrew what rewards allow at frame {diverged[0]:,}"
        return Finding("values", "warn", detail, _EXPLODED)
    returns = [abs(v) for row in rows for n, v in row.items() if n.startswith("return") and is_number(v)]
    if not returns:
        return None
    gamma = algo.get("gamma", 0.0)
    horizon = 1 / (1 - gamma) if 0 <= gamma < 1 else 1.0
    pairs = [(row.get("tau"), row.get("entropy")) for row in train]
    costs = (tau * abs(entropy) for tau, entropy in pairs if is_number(tau) and is_number(entropy))
    bound = EXPLOSION * max(max(returns) + horizon * max(costs, default=0.0), 1.0)
    # A squared error is in squared reward units.
    limits = dict.fromkeys(_IN_REWARD_UNITS, bound)
    limits |= {name: bound**2 for row in train for name in row if name.startswith("loss")}
    for name, limit in limits.items():
        values = {abs(row[name]): row["frames"] for row in reversed(train) if is_number(row.get(name))}
        if values and max(values) > limit:
            worst = f"{name} reached {max(values):.3g} at frame {values[max(values)]:,}"
            detail = f"{worst}, where returns are at most {max(returns):.3g}"
            return Finding("values", "warn", detail, _EXPLODED)
    return Finding("values", "ok", f"of the size that returns up to {max(returns):.3g} allow")


def _bonus(train: list[Row]) -> Finding | None:
    share = _late_mean(train, "bonus_clipped")
    if share is None:
        return None
    detail = f"{share:.1%} of the Munchausen bonuses are clipped in the last quarter"
    todo = "clip_min decides the bonus, not the policy: raise tau, or lower clip_min" if share > CLIPPED_SHARE else ""
    return Finding.judged("bonus", detail, todo)


def _samples(train: list[Row], algo: dict[str, float]) -> Finding | None:
    """Whether a sampled soft value has a large enough effective sample size: with one it is far too low."""
    size, count = _late_mean(train, "ess"), algo.get("num_value_samples")
    if size is None or count is None:
        return None
    detail = f"the soft value rests on {size:.2g} of {count:,} sampled actions in the last quarter (ess)"
    collapsed = size < max(COLLAPSED_SHARE * count, 1.5)
    todo = "it is too low: raise num_value_samples or tau, or sample from policy=flow with algo.proposal=actor"
    return Finding.judged("samples", detail, todo if collapsed else "")


def _late_mean(train: list[Row], name: str) -> float | None:
    """The mean of a column over the last quarter of the rows that have it; None without any."""
    values = numbers_in(train, name)
    late = values[-max(1, len(values) // 4) :]
    return sum(late) / len(late) if late else None


def _exploration(train: list[Row], algo: dict[str, float]) -> Finding | None:
    """Whether the run still explores: epsilon, and returns that vary at all."""
    if algo.get("eps_end") == 0 and "eps_frames" in algo and "total_frames" in algo:
        left = 1 - (algo.get("learning_starts_frames", 0) + algo["eps_frames"]) / algo["total_frames"]
        if left > 0.5:
            todo = "set eps_end to .01, or stretch eps_frames"
            return Finding("exploration", "warn", f"epsilon is 0 for the last {left:.0%} of the run", todo)
    returns = numbers_in(train, "return_mean")
    if not returns:
        return None
    if len(returns) >= _SAME_ROWS and min(returns) == max(returns):
        detail = f"every training episode returned {returns[0]:.4g}, in all {len(returns)} rows"
        return Finding("exploration", "warn", detail, "no episode found another reward: explore more, or longer")
    return Finding("exploration", "ok", f"training returns from {min(returns):.4g} to {max(returns):.4g}")
