"""The numbers of a report: scores, curves, profiles, and responses of the score to settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrl_reg.lab.analysis import statistics
from torchrl_reg.lab.analysis.curves import Chart, Line, chart, mean_curve, profile_lines, seed_values
from torchrl_reg.lab.analysis.groups import Group, short_name, shown
from torchrl_reg.lab.analysis.inference import CAPS, at_cap
from torchrl_reg.lab.analysis.report.sweep import Sweep
from torchrl_reg.lab.analysis.runs import is_number
from torchrl_reg.lab.analysis.scores import Scoreboard, scale_of, scores_of
from torchrl_reg.lab.analysis.statistics import Array, Estimate, mean, stratified_estimate
from torchrl_reg.lab.analysis.tables import differences

#: Heading of the column over all environments.
ALL = "all, scaled IQM"
#: With more environments than this, and than methods, the environments are the rows.
_MAX_COLUMNS = 6
#: With more methods than this, they are sorted by rank.
_MAX_UNSORTED = 8
_RESAMPLES = 2_000
#: Maximum points of a curve, to keep the file small.
_CURVE_POINTS, _DIAGNOSTIC_POINTS = 200, 120
_NOT_DIAGNOSTICS = frozenset(
    {"event", "frames", "updates", "episodes", "fps", "wall_seconds", "eval_seconds", "diverged_frames"}
)
_FIRST = ("return_mean", "loss", "entropy", "kl", "action_gap", "bonus", "bonus_clipped", "soft_gap", "td_error")


def learning_curve(group: Group, column: str, series: int) -> Line | None:
    """Mean over seeds with intervals up to the shortest seed, and a continuation beyond; None without evaluations."""
    curves = [curve for run in group.runs if len((curve := run.evaluations(column))[0])]
    if not curves:
        return None
    every, values = seed_values(curves)
    common = ~np.isnan(values).any(0)
    beyond = every > min(frames[-1] for frames, _ in curves)
    x, shared = _averaged(every[common], values[:, common].T, _CURVE_POINTS)
    band = statistics.interval_band(shared, [len(curves)], statistics.mean, resamples=_RESAMPLES)
    more = _averaged(every[beyond], np.nanmean(values[:, beyond], 0), _CURVE_POINTS)
    low, high = band[1:] if len(curves) > 1 else (None, None)
    return Line(f"{group.method} ({len(curves)})", series, x, band[0], low, high, *more)


def ranked(sweep: Sweep) -> list[str]:
    """Methods from best to worst, by mean rank of their last evaluations over the environments."""
    orders = []
    for env in sweep.envs:
        ends = {
            group.method: [values[-1] for run in group.runs if len(values := run.evaluations(sweep.column)[1])]
            for group in sweep.of_env(env)
        }
        orders.append(sorted(ends, key=lambda name: -np.mean(ends[name]) if ends[name] else math.inf))  # best first
    ranks = {name: [order.index(name) for order in orders if name in order] for name in sweep.methods}
    return sorted(ranks, key=lambda name: np.mean(ranks[name]))


def diagnostic_names(groups: Iterable[Group]) -> list[str]:
    """Training columns that are not constant, returns and losses first."""
    runs = [run for group in groups for run in group.runs]
    there = dict.fromkeys(name for run in runs for name in run.names("train") if len(run.training(name)[1]))
    names = [name for name in there if name not in _NOT_DIAGNOSTICS]
    moving = [name for name in names if np.ptp(np.concatenate([run.training(name)[1] for run in runs]))]
    rank = {name: place for place, name in enumerate(_FIRST)}
    return sorted(moving, key=lambda name: rank.get("loss" if name.startswith("loss") else name, 99))


def diagnostic_line(group: Group, name: str, series: int) -> Line | None:
    """Mean of a training column over the seeds that reached each frame."""
    curves = [curve for run in group.runs if len((curve := run.training(name))[0])]
    return Line(group.method, series, *_averaged(*mean_curve(curves), _DIAGNOSTIC_POINTS)) if curves else None


def compared(sweep: Sweep) -> tuple[str, dict[str, list[Array]]]:
    """A scale, and by method the final scores on it, for environments with any scores.

    0 is a random policy and 1 a human (Atari) or SAC (MuJoCo); elsewhere 0 is the worst finished run of an environment
    and 1 its best. Empty if there are fewer than two environments or methods to compare.
    """
    envs = {each.group.env for each in sweep.scores if len(each.values)}
    scale = scale_of(sorted(envs)) if envs else "none"
    scale = "range" if scale == "none" else scale
    board = Scoreboard([each for each in sweep.scores if each.group.env in envs], scale)
    found = board.comparable()
    return scale, found if len(board.on_scale().envs) > 1 and len(found) > 1 else {}


def profiles(sweep: Sweep, points: int = 301) -> tuple[list[Line], float]:
    """Share of runs above each score on the scale of :func:`compared`, and the share above the last one."""
    scale, found = compared(sweep)
    lines, beyond = profile_lines(found, scale, resamples=_RESAMPLES, points=points)
    return [replace(line, series=sweep.methods.index(line.label)) for line in lines], beyond


def _averaged(x: NDArray[Any], y: Array, count: int) -> tuple[NDArray[Any], Array]:
    """``x`` and ``y [E, ...]`` reduced to ``count`` points: means of neighbours, each at its last ``x``."""
    if len(x) <= count:
        return x, y
    starts = np.linspace(0, len(x), count + 1).astype(int)[:-1]
    sizes = np.diff([*starts, len(x)])
    means = np.add.reduceat(y, starts, axis=0) / sizes.reshape(-1, *[1] * (y.ndim - 1))
    return x[starts + sizes - 1], means


def summary_table(sweep: Sweep) -> dict[str, object]:
    """Final scores with intervals, numbers of seeds and commits; many methods are sorted by mean rank.

    For the template: ``columns`` of cells by method; by method its index (``series``), finished ``seeds`` and
    ``commits``; and ``tall``, True if the page swaps rows and columns.
    """
    over_all = compared(sweep)[1]
    columns = {ALL: over_all} if over_all else {}
    for env in sweep.envs:
        columns[env] = {each.group.method: [each.values] for each in sweep.scores if each.group.env == env}
    methods = ranked(sweep) if len(sweep.methods) > _MAX_UNSORTED else sweep.methods
    groups = {method: [group for group in sweep.groups if group.method == method] for method in methods}
    return {
        "columns": {env: _cells(runs, env) for env, runs in columns.items()},
        "series": {method: sweep.methods.index(method) for method in methods},
        "seeds": {method: _seeds(method, sweep) for method in methods},
        "commits": {m: dict.fromkeys(commit for group in of for commit in group.commits) for m, of in groups.items()},
        "tall": len(columns) > max(_MAX_COLUMNS, len(methods)),
    }


def _cells(column: Mapping[str, list[Array]], name: str) -> dict[str, dict[str, object] | str]:
    """By method, ``score``, ``several`` (has an interval), ``cap``, ``best`` and ``bar``; or ``"unfinished"``.

    Where seeds reach the cap of an environment the mean has no interval, and ``cap`` counts them (``2 of 3 at 500``).

    The best score is the highest if it differs from all others at 5% (Holm); over all environments, if its interval
    lies above all others. A bar is low, high and value in percent of the column's range.
    """
    estimator = statistics.interquartile_mean if name == ALL else statistics.mean
    counts = {method: sum(map(len, runs)) for method, runs in column.items()}
    there = {m: stratified_estimate(column[m], estimator, resamples=_RESAMPLES) for m, count in counts.items() if count}
    caps: dict[str, str] = {}
    for method in there if name in CAPS else ():
        values = column[method][0]
        if share := at_cap(name, values):
            caps[method] = f"{round(share.value * len(values))} of {len(values)} at {CAPS[name]:g}"
            there[method] = Estimate(*[float(values.mean())] * 3)
    low, high = min((e.low for e in there.values()), default=0.0), max((e.high for e in there.values()), default=0.0)
    found: dict[str, dict[str, object] | str] = dict.fromkeys(column, "unfinished")
    top = max(there, key=lambda method: there[method].value, default=None)
    for method, score in there.items():
        best = method == top and _is_best(method, {m: column[m] for m in there}, there, name)
        ends = ((end - low) / (high - low) * 100 for end in (score.low, score.high, score.value)) if high > low else ()
        found[method] = {
            "score": score,
            "several": not score.is_flat,
            "cap": caps.get(method),
            "best": best,
            "bar": tuple(ends),
        }
    return found


def _is_best(method: str, column: Mapping[str, list[Array]], scores: Mapping[str, Estimate], name: str) -> bool:
    """True if the highest score, of ``method``, differs from all others."""
    others = [other for other in column if other != method]
    if name == ALL:
        flat = any(score.is_flat for score in scores.values())
        return bool(others) and not flat and all(scores[method].low > scores[other].high for other in others)
    found = differences(name, {other: column[other][0] for other in others}, column[method][0])
    return bool(found) and all(word == "below" for _, word in found.values())


def _seeds(method: str, sweep: Sweep) -> list[tuple[str, str]]:
    """Numbers of finished and all runs; per environment if these differ on a few environments."""
    scores = [each for each in sweep.scores if each.group.method == method]
    counts = [(len(each.values), len(each.group.runs)) for each in scores]
    texts = [str(total) if done == total else f"{done} of {total}" for done, total in counts]
    if len(set(texts)) == 1:
        return [(texts[0], "")]
    if len(scores) > _MAX_COLUMNS:
        return [(f"{sum(done for done, _ in counts)} of {sum(total for _, total in counts)}", "runs")]
    return [(text, each.group.env) for text, each in zip(texts, scores, strict=True)]


#: With more lines than this, their mean is drawn instead.
_MAX_LINES = 6
_RESPONSE_RESAMPLES = 2_000
#: Keys: a recipe and its other settings. Values: scores by index among the values of the studied settings.
Families = dict[tuple[Any, ...], dict[tuple[int, ...], list[float]]]
Scored = list[tuple[Group, list[float]]]


@dataclass(frozen=True)
class HeatMap:
    """Mean score of a recipe over two settings on one environment; a cell without a finished run is None.

    Args:
        recipe: the recipe.
        rows, columns: the settings.
        env: the environment.
        row_values, column_values: values of the settings, ascending.
        cells: means over the combinations of other settings that all filled cells have.
        counts: numbers of runs in the means.
        note: the combinations left out; empty if none.
    """

    recipe: str
    rows: str
    columns: str
    env: str
    row_values: tuple[str, ...]
    column_values: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    note: str = ""

    def share(self, value: float) -> float:
        """The position of ``value`` between the smallest and the largest cell, in [0, 1]."""
        values = [value for row in self.cells for value in row if value is not None]
        low, high = min(values), max(values)
        return (value - low) / (high - low) if high > low else 0.5


def responses(groups: Sequence[Group], column: str) -> list[Chart]:
    """Charts of the score over each numeric setting that varies between otherwise equal groups of an environment.

    A line per combination of all other settings, or one for their mean.
    """
    found = []
    for env in dict.fromkeys(group.env for group in groups):
        scored = _scored([group for group in groups if group.env == env], column)
        found += [_response(setting, env, scored) for setting in _numeric_settings([group for group, _ in scored])]
    charts = [each for each in found if each is not None]
    names = list(dict.fromkeys(each.x_label for each in charts))
    return [replace(each, title=f"{short_name(each.x_label, names)} on {each.title}") for each in charts]


def heat_maps(groups: Sequence[Group], column: str) -> list[HeatMap]:
    """Heat maps of each recipe and pair of crossed numeric settings, at least 2 x 2 and 3/4 full."""
    found = []
    for env, recipe in dict.fromkeys((group.env, group.recipe) for group in groups):
        scored = _scored([group for group in groups if (group.env, group.recipe) == (env, recipe)], column)
        crossed = [s for s in _numeric_settings([g for g, _ in scored]) if _response(s, env, scored)]
        found += [_heat_map(one, other, env, scored) for one, other in combinations(crossed, 2)]
    return [heat_map for heat_map in found if heat_map is not None]


def _scored(groups: Sequence[Group], column: str) -> Scored:
    """The groups with finished runs, and their scores."""
    scores = [(group, scores_of(group, "final", column).values.tolist()) for group in groups]
    return [(group, values) for group, values in scores if values]


def _numeric_settings(groups: Sequence[Group]) -> list[str]:
    names = dict.fromkeys(name for group in groups for name in group.settings)
    return [name for name in names if len(_values(groups, name)) > 1 and not name.startswith("run.")]


def _values(groups: Sequence[Group], setting: str) -> list[float | None]:
    """Values of ``setting``, ascending, then None; empty if some are not numbers."""
    values = [group.settings[setting] for group in groups if setting in group.settings]
    if not all(is_number(value) or value is None for value in values):
        return []
    numbers = sorted({float(value) for value in values if value is not None})
    return [*numbers, *([None] if None in values and numbers else [])]


def _families(settings: Sequence[str], scored: Scored) -> tuple[list[list[float | None]], Families]:
    """The values of ``settings``, and the scores by their index, per combination of all other settings."""
    having = [(group, scores) for group, scores in scored if all(name in group.settings for name in settings)]
    values = [_values([group for group, _ in having], name) for name in settings]
    families: Families = {}
    for group, scores in having:
        place = tuple(each.index(group.settings[name]) for name, each in zip(settings, values, strict=True))
        rest = [(name, value) for name, value in group.settings.items() if name not in settings]
        family = (group.recipe, *((name, (shown(value), str(value))) for name, value in rest))
        families.setdefault(family, {})[place] = scores
    return values, families


def _response(setting: str, env: str, scored: Scored) -> Chart | None:
    (values,), found = _families([setting], scored)
    families = {key: sorted((at, scores) for (at,), scores in of.items()) for key, of in found.items() if len(of) > 1}
    if not families:
        return None
    if len(families) > _MAX_LINES:
        # Only combinations with all values: else means of values would be over different settings.
        complete = [points for points in families.values() if len(points) == len(values)]
        if not complete:
            return None
        lines = [_line("mean over all other settings", 0, complete)]
        short = f" ({len(complete)} of {len(families)}: those with all values)" if len(complete) < len(families) else ""
        note = f"over {len(complete)} combinations of the other settings{short}"
    else:
        named = _names(list(families))
        items = zip(named, families.values(), strict=True)
        lines = [_line(name, series, [points]) for series, (name, points) in enumerate(items)]
        note = "; ".join(named) if len(named) == 1 else ""
    return chart(env, lines, note=note, x_label=setting, ticks=tuple(map(shown, values)))


def _names(keys: list[tuple[Any, ...]]) -> list[str]:
    """Names of combinations: the recipe and the settings that differ."""
    rests = [dict(key[1:]) for key in keys]
    names = dict.fromkeys(name for rest in rests for name in rest)
    differing = [name for name in names if len({rest.get(name) for rest in rests}) > 1]
    return [
        " ".join([key[0], *(f"{short_name(n, differing)}={rest[n][0]}" for n in differing if n in rest)])
        for key, rest in zip(keys, rests, strict=True)
    ]


def _line(label: str, series: int, families: Sequence[Sequence[tuple[int, list[float]]]]) -> Line:
    """The mean over families, equally weighted, with its interval over runs, at the indices they share."""
    places = [place for place, _ in families[0]]
    runs = [[points[i][1] for points in families] for i in range(len(places))]
    found = [stratified_estimate(each, mean, resamples=_RESPONSE_RESAMPLES) for each in runs]
    value, low, high = np.array(found).T
    return Line(label, series, np.array(places, np.float64), value, low, high)


def _heat_map(one: str, other: str, env: str, scored: Scored) -> HeatMap | None:
    (rows, columns), families = _families([one, other], scored)
    filled = set().union(*families.values())
    shared = [scores for scores in families.values() if scores.keys() == filled]
    if len(rows) < 2 or len(columns) < 2 or len(filled) < 0.75 * len(rows) * len(columns) or not shared:
        return None
    places = [[(row, column) for column in range(len(columns))] for row in range(len(rows))]
    means = {place: float(np.mean([np.mean(of[place]) for of in shared])) for place in filled}
    cells = [tuple(means.get(place) for place in line) for line in places]
    counts = [tuple(sum(len(of.get(place, ())) for of in shared) for place in line) for line in places]
    note = f"unbalanced: {len(shared)} of {len(families)} combinations of the other settings are in every cell"
    note = note if len(shared) < len(families) else ""
    recipe, down, across = next(iter(families))[0], tuple(map(shown, rows)), tuple(map(shown, columns))
    return HeatMap(recipe, one, other, env, down, across, tuple(cells), tuple(counts), note)
