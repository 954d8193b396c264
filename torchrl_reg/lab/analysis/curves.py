"""Learning curves as arrays, and charts of them as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.lab.analysis import statistics
from torchrl_reg.lab.analysis.groups import Group
from torchrl_reg.lab.analysis.runs import Column
from torchrl_reg.lab.analysis.scores import normalized
from torchrl_reg.lab.analysis.statistics import Array, Estimator
from torchrl_reg.lab.errors import UserError

# Colours after Okabe and Ito, safe for colour-blind readers.

#: On white, in the order of methods; yellow is left out, as lines of it vanish.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#B5548C", "#B98900", "#3F9FD8", "#6A4FB3", "#8A5A3C", "#7A8B00", "#555B61")
#: The same on black.
DARK = ("#4AA8E8", "#FF8A3D", "#2FCB9A", "#E58BBF", "#E3B53B", "#8FD0FF", "#A992F5", "#C99672", "#B7C94A", "#AAB2BA")
GREY = "#6B6B6B"


@dataclass(frozen=True)
class Line:
    """One series: ``y`` over ``x``, with an interval or without, and a part that fewer runs reached.

    Args:
        label: in the legend and the read-out.
        series: its colour, and what the buttons of a report toggle.
        low, high: ends of an interval, or None.
        more_x, more_y: continued dashed.
    """

    label: str
    series: int
    x: NDArray[Any]
    y: Array
    low: Array | None = None
    high: Array | None = None
    more_x: NDArray[Any] = field(default_factory=lambda: np.zeros(0))
    more_y: Array = field(default_factory=lambda: np.zeros(0))

    def finite(self) -> Line:
        """The line without points that are not finite numbers."""
        keep, more = (np.isfinite(x) & np.isfinite(y) for x, y in ((self.x, self.y), (self.more_x, self.more_y)))
        low, high = (side if side is None else side[keep] for side in (self.low, self.high))
        rest_x, rest_y = self.more_x[more], self.more_y[more]
        return replace(self, x=self.x[keep], y=self.y[keep], low=low, high=high, more_x=rest_x, more_y=rest_y)


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` as places in [0, 1], logarithmic or not."""

    low: float
    high: float
    log: bool = False

    def place(self, values: Array | float) -> Array:
        """Where ``values`` stand."""
        low, high, at = (np.log10(np.maximum(v, 1e-300)) if self.log else v for v in (self.low, self.high, values))
        return np.asarray((at - low) / (high - low))

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round numbers within the limits."""
        from matplotlib.ticker import LogLocator, MaxNLocator  # tables do without

        locator: Any = LogLocator(numticks=5) if self.log else MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
        return [float(tick) for tick in locator.tick_values(self.low, self.high) if self.low <= tick <= self.high]


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes.

    Args:
        title, note: above it, the note in grey.
        lines: finite ones, see :func:`chart`.
        x_label, y_label: of the axes.
        ticks: texts below it at 0, 1, ... instead of numbers; every point is then marked by a dot.
        may_log: a logarithmic axis where values are positive and span three orders of magnitude.
        log_x: a logarithmic axis of x.
        span: lowest and highest value to show, instead of those of the lines.
        level: a value to mark by a dotted line.
        small: one of many.
        steps: lines that keep their value up to the next point.
        joined: points are joined by lines.
    """

    title: str
    lines: Sequence[Line]
    note: str = ""
    x_label: str = "frames"
    y_label: str = ""
    ticks: Sequence[str] | None = None
    may_log: bool = False
    log_x: bool = False
    span: tuple[float, float] | None = None
    level: float | None = None
    small: bool = False
    steps: bool = False
    joined: bool = True

    @cached_property
    def x(self) -> Scale:
        """The axis to the right; from 0 where that costs little."""
        values = np.concatenate([part for line in self.lines for part in (line.x, line.more_x)])
        left, right = float(values.min()), float(values.max())
        if self.ticks is not None:
            left, right = -0.4, len(self.ticks) - 1 + 0.4
        elif 0 < left < 0.4 * right and not self.log_x:
            left = 0.0
        if right <= left:  # a single frame
            left, right = min(0.0, 1.25 * left), max(1.25 * right, 1.0)
        return Scale(left, right, self.log_x)

    @cached_property
    def y(self) -> Scale:
        """The axis upwards."""
        parts = [part for line in self.lines for part in (line.y, line.more_y, line.low, line.high) if part is not None]
        values = np.concatenate([*parts, np.array([] if self.level is None else [self.level])])
        low, high = self.span or (float(values.min()), float(values.max()))
        if self.may_log and low > 0 and high / low >= 1000:
            return Scale(low / 1.3, high * 1.3, True)
        margin = 0.0 if self.span else (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return Scale(low - margin, high + margin)

    def dotted(self, line: Line) -> bool:
        """Whether the points of ``line`` are marked: where there are few."""
        return self.ticks is not None or len(line.x) == 1 or 1 < len(line.x) + len(line.more_x) <= 12


def chart(title: str, found: Sequence[Line | None], **options: Any) -> Chart | None:
    """A :class:`Chart` of what is there and finite in ``found``; None where there is nothing to draw."""
    lines = [line for line in (each.finite() for each in found if each) if len(line.x) or len(line.more_x)]
    return Chart(title, lines, **options) if lines else None


#: Frames and values.
Curve = tuple[Array, Array]


def seed_values(curves: Sequence[Column]) -> tuple[NDArray[np.int64], Array]:
    """Frames ``[E]`` of any of the ``curves`` (frames and values of a seed), and values ``[seeds, E]``, else NaN."""
    every = np.unique(np.concatenate([frames for frames, _ in curves]))
    values = np.full((len(curves), len(every)), np.nan)
    for row, (frames, found) in zip(values, curves, strict=True):
        row[np.searchsorted(every, frames)] = found
    return every, values


def group_curve(group: Group, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], Array] | None:
    """Frames ``[E]`` that all seeds have evaluated, and values ``[seeds, E]``; None without any.

    Seeds that have no evaluation yet are left out. An evaluation that is null for one seed is left out for all.

    Raises:
        UserError: seeds evaluated at different frames.
    """
    runs = [run for run in group.runs if len(run.evaluations(column)[0])]
    for run in runs[1:]:
        frames_of = [each.evaluated_frames(column) for each in (runs[0], run)]  # nulls count as evaluated
        both = min(map(len, frames_of))
        if not np.array_equal(frames_of[0][:both], frames_of[1][:both]):
            raise UserError(
                f"seeds of {group.method} on {group.env} must be evaluated at the same frames, got different ones in "
                f"{runs[0].path} and {run.path}."
            )
    if not runs:
        return None
    frames, values = seed_values([run.evaluations(column) for run in runs])
    common = ~np.isnan(values).any(0)
    return (frames[common], values[:, common]) if common.any() else None


def mean_curve(curves: Sequence[Column]) -> Curve:
    """Mean at every frame of any curve, over the curves whose span holds it (linear in between)."""
    if not curves:
        return np.zeros(0), np.zeros(0)
    frames = np.unique(np.concatenate([x for x, _ in curves])).astype(np.float64)
    values = np.stack([np.interp(frames, x, y, left=np.nan, right=np.nan) for x, y in curves])
    return frames, np.nanmean(values, 0)


def aggregate_curve(
    groups: Sequence[Group], scale: str, estimator: Estimator, column: str = "return_greedy_mean", *, frames: int
) -> tuple[Array, Array]:
    """One method over its environments: frames ``[E]`` and ``[3, E]`` (value, low, high) of normalized returns.

    Curves are interpolated linearly at 50 common frames at most, from the first evaluation that all environments have
    to the last.

    Args:
        groups: of one method, one an environment.
        scale: ``human`` or ``sac``.
        estimator: the aggregate over environments and runs.
        frames: length of the experiment, which SAC's reference returns depend on.

    Raises:
        UserError: an environment without evaluations, or none in common.
    """
    curves = [(group, group_curve(group, column)) for group in groups]
    if missing := [group.env for group, curve in curves if curve is None]:
        raise UserError(f"{groups[0].method} must have evaluations of {column} everywhere, got none on {missing[0]}.")
    found = [(group.env, *curve) for group, curve in curves if curve is not None]
    start, stop = max(each[0] for _, each, _ in found), min(each[-1] for _, each, _ in found)
    if start > stop:
        raise UserError(f"{groups[0].method} must be evaluated at frames that overlap, got none in common.")
    common = np.linspace(start, stop, min(50, max(len(each) for _, each, _ in found)))
    runs = [
        np.stack([np.interp(common, each, normalized(env, seed, scale, frames)) for seed in values])
        for env, each, values in found
    ]
    sizes = [len(task) for task in runs]
    return common, statistics.interval_band(np.concatenate(runs).T, sizes, estimator, resamples=1_000)


def profile_lines(
    runs: Mapping[str, Sequence[Array]], scale: str, *, resamples: int, points: int = 301
) -> tuple[list[Line], float]:
    """By method (one array of scores an environment) the share of runs above each score, and that beyond the last."""
    if not runs:
        return [], 0.0
    thresholds, beyond = statistics.profile_thresholds([each for of in runs.values() for each in of], scale, points)
    bands = (statistics.performance_profile(each, thresholds, resamples=resamples) for each in runs.values())
    lines = zip(runs, bands, strict=True)
    return [Line(method, series, thresholds, *band) for series, (method, band) in enumerate(lines)], beyond
