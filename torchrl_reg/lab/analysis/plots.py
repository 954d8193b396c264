"""Draws finished runs: learning curves, aggregates over environments, improvement, profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from torchrl_reg.lab.analysis import statistics
from torchrl_reg.lab.analysis.curves import GREY, LIGHT, Chart, Line, aggregate_curve, chart, group_curve, profile_lines
from torchrl_reg.lab.analysis.groups import Group
from torchrl_reg.lab.analysis.names import METHODS, TASKS
from torchrl_reg.lab.analysis.numbers import amount, counted, distinct, number, percent
from torchrl_reg.lab.analysis.protocols import Gap
from torchrl_reg.lab.analysis.scores import SCALE_NAMES, Scoreboard, Scores, has_score
from torchrl_reg.lab.analysis.statistics import AGGREGATES
from torchrl_reg.lab.documents import one_of
from torchrl_reg.lab.errors import UserError

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
#: Maximum number of methods in a legend above the panels, and inches per row of it.
_MAX_ABOVE, _LEGEND_ROW = 12, 0.19
#: Width in inches of a figure with several panels: text keeps its size on a page 720 pixels wide.
_PAGE = 7.2
SUFFIXES = (".png", ".svg", ".pdf")
#: Colours of our scores: not shown to differ from the published ones of the same protocol, different, none published.
_AGREES, _DIFFERS, _UNPUBLISHED = LIGHT[2], LIGHT[1], LIGHT[0]
_CENTERS = {"mean": statistics.mean, "iqm": statistics.interquartile_mean}
_FRAMES = "environment frames"


def draw_learning_curves(
    groups: Sequence[Group], path: Path, *, column: str = "return_greedy_mean", center: str = "mean"
) -> Path:
    """A panel per environment with a curve per method: mean or IQM (``center``) over seeds with a 95% interval.

    Raises:
        UserError: no evaluations at all, seeds evaluated at different frames, or a bad ``center`` or suffix.
    """
    estimator = _CENTERS[one_of("center", center, _CENTERS)]
    methods = list(dict.fromkeys(group.method for group in groups))
    lines: dict[str, list[Line]] = {group.env: [] for group in groups}
    for group in groups:
        if (curve := group_curve(group, column)) is not None:
            band = statistics.interval_band(curve[1].T, [len(curve[1])], estimator)
            lines[group.env].append(Line(group.method, methods.index(group.method), curve[0], *band))
    charts = [found for env, of in lines.items() if (found := chart(env, of, x_label=""))]
    if not charts:
        raise UserError(f"results must hold evaluations of {column}, got none.")
    name = column.removeprefix("return_").removesuffix("_mean").replace("_", " ")
    y_label = f"{name} return" if column.startswith("return_") else name
    return draw(charts, path, columns=3, x_label=_FRAMES, y_label=y_label)


def draw_aggregate_curves(
    groups: Sequence[Group], path: Path, *, scale: str, column: str = "return_greedy_mean", aggregate: str = "IQM"
) -> Path:
    """Draws ``aggregate`` (IQM, median, mean or optimality gap) of normalized returns over environments, per frame.

    Only methods with runs on every environment are drawn.

    Raises:
        UserError: no common scale, no such method, or a bad ``aggregate`` or suffix.
    """
    _require_scale(scale)
    if scale == "own_sac":
        raise UserError("normalize must be human or sac for aggregate curves, got own_sac, a score of finished runs.")
    one_of("aggregate", aggregate, AGGREGATES)
    groups = [group for group in groups if has_score(group.env, scale)]
    envs = {group.env for group in groups}
    of = {group.method: [each for each in groups if each.method == group.method] for group in groups}
    complete = {method: found for method, found in of.items() if {group.env for group in found} == envs}
    if not complete:
        raise UserError(f"results must hold a method with runs on all of {', '.join(sorted(envs))}, got none.")
    frames = max(run.last_evaluation(column) for group in groups for run in group.runs)
    lines = []
    for series, (method, found) in enumerate(complete.items()):
        x, band = aggregate_curve(found, scale, AGGREGATES[aggregate], column, frames=frames)
        lines.append(Line(method, series, x, *band))
    y_label = f"{aggregate}, {SCALE_NAMES[scale]} ({counted(len(envs), 'environment')})"
    return draw([chart("", lines, x_label="")], path, x_label=_FRAMES, y_label=y_label)


def draw_profiles(scores: Sequence[Scores], path: Path, *, scale: str) -> Path:
    """Draws the share of runs above each normalized score, averaged over environments, with 95% intervals.

    Only methods with runs on every environment are drawn.

    Raises:
        UserError: no common scale, no such method, or a bad suffix.
    """
    _require_scale(scale)
    board = Scoreboard(scores, scale).on_scale()
    lines, beyond = profile_lines(board.comparable(), scale, resamples=1_000)
    if not lines:
        raise UserError(f"results must hold a method with runs on all of {', '.join(board.envs)}, got none.")
    note = statistics.beyond_note(beyond) if beyond else ""
    found = chart("", lines, note=note, x_label="", span=(0.0, 1.0), steps=True)
    y_label = f"share of runs with a score above s ({counted(len(board.envs), 'environment')})"
    return draw([found], path, x_label=f"{SCALE_NAMES[scale]} score, s", y_label=y_label)


def draw_improvement(scores: Sequence[Scores], path: Path, *, method: str, baseline: str, scale: str) -> Path:
    """Draws a bar per environment: the improvement of ``method`` over ``baseline`` in percent, on a symlog scale.

    ``100 (x - b) / max(1, b)`` of normalized means x and b: relative to the reference agent or the baseline, whichever
    is higher (Wang et al., 2016). Without a scale ``100 (x - b) / |b|`` of mean returns.

    Raises:
        UserError: unknown methods, no environment in common, a baseline of 0 without a scale, or a bad suffix.
    """
    board = Scoreboard(scores, scale)
    ours, theirs = board.method_scores(method), board.method_scores(baseline)
    shared = [env for env in ours if env in theirs and has_score(env, scale)]
    means = {env: [float(board.normalized(env, of[env]).mean()) for of in (ours, theirs)] for env in shared}
    found = {env: _improvement(env, score, other, scale) for env, (score, other) in means.items()}
    if not found:
        raise UserError(f"{method} and {baseline} must share an environment, got none.")
    envs = sorted(found, key=lambda env: found[env])
    values = np.array([found[env] for env in envs])
    figure = new_figure(6.4, 1.1 + 0.19 * max(len(envs), 3))
    axes = styled(figure.add_subplot())
    axes.grid(axis="y", visible=False)
    bars = axes.barh(range(len(envs)), values, color=[LIGHT[int(value < 0)] for value in values], height=0.7)
    axes.bar_label(bars, [percent(value) for value in values], padding=3, fontsize=7, color=GREY)
    axes.set_yticks(range(len(envs)), [env.removeprefix("atari/") for env in envs], fontsize=8)
    axes.set_ylim(-0.6, len(envs) - 0.4)
    axes.axvline(0, color=GREY, linewidth=0.8)
    # Linear up to 10%, then logarithmic, symmetric about 0.
    end = 3 * max(float(np.abs(values).max()), 10)
    axes.set_xscale("symlog", linthresh=10, linscale=0.6)
    axes.set_xlim(-end, end)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    better = f"better on {(values > 0).sum()} of {counted(len(envs), 'environment')}"
    axes.set_title(f"{method} over {baseline}: {better}", fontsize=9, loc="left")
    unit = SCALE_NAMES[scale] + " score" * (scale != "none")
    axes.set_xlabel(f"improvement in {unit} (%)", fontsize=9)
    return save(figure, path)


def draw_published(found: Sequence[Gap], path: Path) -> Path:
    """A panel per environment with a row per method: our 95% interval, and below it a published mean ± spread in grey.

    Published scores of other protocols are left out. Returns are undiscounted, in reward units.

    Raises:
        UserError: as :func:`save`.
    """
    rows: dict[str, dict[str, list[Gap]]] = {}
    for each in found:
        if len(each.scores.values):
            group = each.scores.group
            rows.setdefault(group.env, {}).setdefault(group.method, []).append(each)
    drawn: set[str] = set()
    columns = min(len(rows), 3)
    lines = -(-len(rows) // columns)
    max_rows = max(map(len, rows.values()))
    figure = new_figure(_PAGE if columns > 1 else 4.8, lines * (0.75 + 0.42 * max_rows))
    for place, (env, methods) in enumerate(rows.items(), 1):
        axes = styled(figure.add_subplot(lines, columns, place))
        axes.set_title(TASKS.get(env, env), fontsize=9, loc="left")
        axes.set_yticks(range(len(methods)), [METHODS.get(method, method) for method in methods])
        axes.set_ylim(len(methods) - 0.3, -0.7)
        for row, gaps in enumerate(methods.values()):
            drawn |= _draw_row(axes, row, gaps)
    figure.supxlabel("return", fontsize=9)
    looks = {
        "ours, not shown to differ": _AGREES,
        "ours, differs": _DIFFERS,
        "ours, none published": _UNPUBLISHED,
        "published": GREY,
    }
    add_legend(figure, {label: {"color": color} for label, color in looks.items() if color in drawn})
    return save(figure, path)


def _draw_row(axes: Axes, row: int, gaps: Sequence[Gap]) -> set[str]:
    """Draws our score and the first published one of the same protocol; returns the colours used."""
    same = [gap for gap in gaps if gap.difference is not None]
    differs = any(gap.verdict and gap.verdict.word in ("above", "below") for gap in same)
    color = _UNPUBLISHED if not same else _DIFFERS if differs else _AGREES
    ours = gaps[0].ours
    ends = [[ours.value - ours.low], [ours.high - ours.value]]
    axes.errorbar(ours.value, row - 0.12, xerr=ends, color=color, fmt="o", markersize=4, linewidth=2, clip_on=False)
    for published in [gap.published for gap in same if gap.published is not None][:1]:
        axes.errorbar(
            published.mean,
            row + 0.16,
            xerr=published.spread or 0,
            color=GREY,
            fmt="o",
            markersize=4,
            markerfacecolor="white",
            linewidth=1.2,
            clip_on=False,
        )
    return {color, *([GREY] if same else [])}


def draw(charts: Sequence[Chart | None], path: Path, *, columns: int = 1, x_label: str = "", y_label: str = "") -> Path:
    """Writes ``charts`` in rows of ``columns`` with one legend and shared axis labels.

    Raises:
        UserError: as :func:`save`.
    """
    found = [each for each in charts if each is not None]
    columns = min(len(found), columns)
    rows = -(-len(found) // columns)
    width, height = (6.4, 3.6) if len(found) == 1 else (_PAGE, 2.9 if rows == 1 else 2.2 * rows)
    figure = new_figure(width, height + 0.5)
    for place, each in enumerate(found, 1):
        _draw_chart(styled(figure.add_subplot(rows, columns, place)), each)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    add_legend(figure, {line.label: style(line.series) for each in found for line in each.lines})
    return save(figure, path)


def _draw_chart(axes: Axes, chart: Chart) -> None:
    """Draws ``chart`` in ``axes``."""
    axes.set_title(chart.title, fontsize=9, loc="left")
    axes.set_title(chart.note, fontsize=8, loc="right", color=GREY)
    axes.set(xscale="log" if chart.x.log else "linear", xlim=(chart.x.low, chart.x.high))
    axes.set(yscale="log" if chart.y.log else "linear", ylim=(chart.y.low, chart.y.high))
    axes.set_xlabel(chart.x_label, fontsize=9)
    axes.set_ylabel(chart.y_label, fontsize=9)
    x_ticks, y_ticks = chart.x.ticks(5), chart.y.ticks(5)
    axes.set_yticks(y_ticks, distinct(y_ticks, number))
    if chart.ticks is None:
        axes.set_xticks(x_ticks, distinct(x_ticks, amount))
    else:
        axes.set_xticks(range(len(chart.ticks)), chart.ticks, rotation=90 if len(chart.ticks) > 6 else 0)
    axes.minorticks_off()
    if chart.level is not None:
        axes.axhline(chart.level, color=GREY, linestyle=":", linewidth=1)
    for line in chart.lines:
        _draw_line(axes, line, chart)


def _draw_line(axes: Axes, line: Line, chart: Chart) -> None:
    look = style(line.series) | {"linewidth": 1.6, "clip_on": chart.span is not None}
    look |= {} if chart.joined else {"linestyle": "none"}
    drawstyle: Literal["steps-post", "default"] = "steps-post" if chart.steps else "default"
    dots = "o" if chart.dotted(line) else ""
    axes.plot(line.x, line.y, marker=dots, markersize=3, drawstyle=drawstyle, **look)
    axes.plot([*line.x[-1:], *line.more_x], [*line.y[-1:], *line.more_y], **look | {"linestyle": ":"})
    if line.low is None or line.high is None:
        return
    if chart.ticks is not None:
        axes.vlines(line.x, line.low, line.high, color=look["color"], alpha=0.45, linewidth=2)
    else:
        step: Literal["post"] | None = "post" if chart.steps else None
        axes.fill_between(line.x, line.low, line.high, step=step, color=look["color"], alpha=0.15, linewidth=0)


def _improvement(env: str, score: float, baseline: float, scale: str) -> float:
    if scale != "none":
        return 100 * (score - baseline) / max(1.0, baseline)
    if baseline == 0:
        raise UserError(f"the baseline's mean return on {env} must not be 0 without a scale, got 0.")
    return 100 * (score - baseline) / abs(baseline)


def _require_scale(scale: str) -> None:
    if scale not in ("human", "sac", "own_sac"):
        raise UserError(
            "normalize must be human, sac or own_sac to average environments, got none; returns of different "
            "environments have no common scale."
        )


def style(series: int) -> dict[str, Any]:
    """The colour of a series, the same in all panels, with dashes once the colours repeat."""
    dashes = _DASHES[series // len(LIGHT) % len(_DASHES)]
    return {"color": LIGHT[series % len(LIGHT)], "linestyle": dashes}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches; created without pyplot, which may need a display."""
    return Figure(figsize=(width, height), layout="constrained")


def styled(axes: Axes) -> Axes:
    """Styles ``axes``: no frame, a faint grid, small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B0B0B0")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color="#B0B0B0")
    return axes


def add_legend(figure: Figure, looks: dict[str, dict[str, Any]]) -> None:
    """Adds a legend for all panels: above them, or to their right for more than 12 methods.

    The figure grows by the size of the legend, so that the panels keep theirs.
    """
    handles = [Line2D([], [], linewidth=2, label=method, **look) for method, look in looks.items()]
    width, height = figure.get_size_inches()
    entry = 0.075 * max(len(method) for method in looks) + 0.45
    place: Literal["outside upper left", "outside right upper"]
    if len(looks) > _MAX_ABOVE:
        columns, place = 1, "outside right upper"
        figure.set_size_inches(width + entry, max(height, _LEGEND_ROW * len(looks) + 0.3))
    else:
        columns, place = max(1, min(len(looks), int(width / entry))), "outside upper left"
        figure.set_size_inches(width, height + _LEGEND_ROW * (-(-len(looks) // columns) - 1))
    figure.legend(handles=handles, loc=place, ncols=columns, frameon=False, fontsize=8, handlelength=1.8)


def save(figure: Figure, path: Path) -> Path:
    """Writes ``figure`` to ``path``: PNG, SVG or PDF by its suffix.

    Raises:
        UserError: another suffix, or a folder that cannot be written.
    """
    checked_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # No date and fixed ids: equal runs give equal files.
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
        with rc_context({"svg.hashsalt": "torchrl_reg"}):
            figure.savefig(path, dpi=130, metadata=metadata)
    except OSError as error:
        raise UserError(f"out must be a file that can be written, got {path}: {error.strerror}.") from None
    return path


def checked_path(path: Path) -> Path:
    """``path`` if its suffix is one of ``SUFFIXES``.

    Raises:
        UserError: it is not.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"out must end in {', '.join(SUFFIXES)}, got {str(path)!r}.")
    return path
