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

# Colours by Okabe and Ito, safe for colour-blind readers.

#: Colours on white, in the order of methods, without yellow: its lines are hard to see.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#B5548C", "#B98900", "#3F9FD8", "#6A4FB3", "#8A5A3C", "#7A8B00", "#555B61")
#: Colours on black.
DARK = ("#4AA8E8", "#FF8A3D", "#2FCB9A", "#E58BBF", "#E3B53B", "#8FD0FF", "#A992F5", "#C99672", "#B7C94A", "#AAB2BA")
GREY = "#6B6B6B"


@dataclass(frozen=True)
class Line:
    """A series ``y`` over ``x`` with an optional interval, and its continuation over the runs that went further.

    Args:
        label: text in the legend and the read-out.
        series: index of its colour, toggled by a button of a report.
        low, high: ends of the interval, or None.
        more_x, more_y: the continuation, drawn dashed.
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
        """The line without points that are not finite."""
        keep, more = (np.isfinite(x) & np.isfinite(y) for x, y in ((self.x, self.y), (self.more_x, self.more_y)))
        low, high = (side if side is None else side[keep] for side in (self.low, self.high))
        rest_x, rest_y = self.more_x[more], self.more_y[more]
        return replace(self, x=self.x[keep], y=self.y[keep], low=low, high=high, more_x=rest_x, more_y=rest_y)


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` to [0, 1], linearly or logarithmically."""

    low: float
    high: float
    log: bool = False

    def place(self, values: Array | float) -> Array:
        """The positions of ``values`` in [0, 1]."""
        low, high, at = (np.log10(np.maximum(v, 1e-300)) if self.log else v for v in (self.low, self.high, values))
        return np.asarray((at - low) / (high - low))

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round numbers within the limits."""
        from matplotlib.ticker import Locator, LogLocator, MaxNLocator  # imported here: tables need no matplotlib

        locator: Locator = LogLocator(numticks=5) if self.log else MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
        return [float(tick) for tick in locator.tick_values(self.low, self.high) if self.low <= tick <= self.high]


@dataclass(frozen=True)
class Chart:
    """Lines in one pair of axes.

    Args:
        title, note: text above the axes, the note in grey.
        lines: finite lines, see :func:`chart`.
        x_label, y_label: labels of the axes.
        ticks: texts at x = 0, 1, ... instead of numbers; every point is then marked by a dot.
        may_log: uses a logarithmic y axis if values are positive and span three orders of magnitude.
        log_x: uses a logarithmic x axis.
        span: y limits; by default those of the lines.
        level: a value to mark by a dotted line.
        small: draws fewer ticks, for one panel of many.
        steps: draws steps instead of straight lines.
        joined: connects the points.
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
        """The x axis, from 0 if that wastes little space."""
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
        """The y axis."""
        parts = [part for line in self.lines for part in (line.y, line.more_y, line.low, line.high) if part is not None]
        values = np.concatenate([*parts, np.array([] if self.level is None else [self.level])])
        low, high = self.span or (float(values.min()), float(values.max()))
        if self.may_log and low > 0 and high / low >= 1000:
            return Scale(low / 1.3, high * 1.3, True)
        margin = 0.0 if self.span else (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return Scale(low - margin, high + margin)

    def dotted(self, line: Line) -> bool:
        """True if the points of ``line`` are marked, because there are few."""
        return self.ticks is not None or len(line.x) == 1 or 1 < len(line.x) + len(line.more_x) <= 12


def chart(title: str, found: Sequence[Line | None], **options: Any) -> Chart | None:
    """A :class:`Chart` of the finite points of the lines in ``found``; None if there are none."""
    lines = [line for line in (each.finite() for each in found if each) if len(line.x) or len(line.more_x)]
    return Chart(title, lines, **options) if lines else None


#: Frames and values.
Curve = tuple[Array, Array]


def seed_values(curves: Sequence[Column]) -> tuple[NDArray[np.int64], Array]:
    """The union of the frames of ``curves`` ``[E]`` (a curve a seed), and values ``[seeds, E]``, NaN where absent."""
    every = np.unique(np.concatenate([frames for frames, _ in curves]))
    values = np.full((len(curves), len(every)), np.nan)
    for row, (frames, found) in zip(values, curves, strict=True):
        row[np.searchsorted(every, frames)] = found
    return every, values


def group_curve(group: Group, column: str = "return_greedy_mean") -> tuple[NDArray[np.int64], Array] | None:
    """Frames ``[E]`` at which all seeds were evaluated, and values ``[seeds, E]``; None without any.

    Seeds without evaluations are left out. An evaluation that is null for one seed is left out for all.

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
    """The mean at each frame of any curve, over the curves whose span contains it, interpolated linearly."""
    if not curves:
        return np.zeros(0), np.zeros(0)
    frames = np.unique(np.concatenate([x for x, _ in curves])).astype(np.float64)
    values = np.stack([np.interp(frames, x, y, left=np.nan, right=np.nan) for x, y in curves])
    return frames, np.nanmean(values, 0)


def aggregate_curve(
    groups: Sequence[Group], scale: str, estimator: Estimator, column: str = "return_greedy_mean", *, frames: int
) -> tuple[Array, Array]:
    """Aggregate of a method over environments: frames ``[E]`` and normalized returns ``[3, E]`` (value, low, high).

    Curves are interpolated linearly at up to 50 frames, from the first to the last evaluation that all environments
    have in common.

    Args:
        groups: groups of one method, one per environment.
        scale: ``human`` or ``sac``.
        estimator: the aggregate over environments and runs.
        frames: length of the runs, on which SAC's reference returns depend.

    Raises:
        UserError: an environment without evaluations, or no frames in common.
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
    """Profiles of methods (an array of scores per environment): shares of runs above scores, and above the last one."""
    if not runs:
        return [], 0.0
    thresholds, beyond = statistics.profile_thresholds(
        [each for tasks in runs.values() for each in tasks], scale, points
    )
    bands = (statistics.performance_profile(each, thresholds, resamples=resamples) for each in runs.values())
    lines = zip(runs, bands, strict=True)
    return [Line(method, series, thresholds, *band) for series, (method, band) in enumerate(lines)], beyond
