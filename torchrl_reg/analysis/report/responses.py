"""How the score responds to one setting and to pairs of settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from torchrl_reg.analysis.charts import Chart, Line, chart
from torchrl_reg.analysis.groups import Group, short_name, shown
from torchrl_reg.analysis.record import is_number
from torchrl_reg.analysis.scores import scores_of
from torchrl_reg.analysis.statistics import mean, stratified_estimate

#: With more lines than these, the mean over all of them is drawn instead.
_MOST_LINES = 6
_RESAMPLES = 2_000
#: By the recipe and every setting but those looked at, with the values: scores at places among the values of those.
Families = dict[tuple[Any, ...], dict[tuple[int, ...], list[float]]]
Scored = list[tuple[Group, list[float]]]


@dataclass(frozen=True)
class HeatMap:
    """Mean score of one recipe over two settings on one environment; a cell is None where no run is finished.

    Args:
        recipe: whose runs.
        rows, columns: the settings.
        env: the environment.
        row_values, column_values: those they take, ascending.
        cells: means over the runs of the combinations of the other settings that every filled cell has.
        counts: numbers of these runs.
        note: which combinations were left out; empty for none.
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
        """Where ``value`` stands between the least and the largest cell, in [0, 1]."""
        values = [value for row in self.cells for value in row if value is not None]
        low, high = min(values), max(values)
        return (value - low) / (high - low) if high > low else 0.5


def responses(groups: Sequence[Group], column: str) -> list[Chart]:
    """Score against every numeric setting of which groups on one environment, otherwise equal, have several values.

    One line per combination of everything else, or one over all.
    """
    found = []
    for env in dict.fromkeys(group.env for group in groups):
        scored = _scored([group for group in groups if group.env == env], column)
        found += [_response(setting, env, scored) for setting in _numeric_settings([group for group, _ in scored])]
    charts = [each for each in found if each is not None]
    names = list(dict.fromkeys(each.x_label for each in charts))
    return [replace(each, title=f"{short_name(each.x_label, names)} on {each.title}") for each in charts]


def heat_maps(groups: Sequence[Group], column: str) -> list[HeatMap]:
    """One for every recipe and pair of its numeric settings crossed with each other, at least 2 x 2 and 3/4 full."""
    found = []
    for env, recipe in dict.fromkeys((group.env, group.recipe) for group in groups):
        scored = _scored([group for group in groups if (group.env, group.recipe) == (env, recipe)], column)
        crossed = [s for s in _numeric_settings([g for g, _ in scored]) if _response(s, env, scored)]
        found += [_heat_map(one, other, env, scored) for one, other in combinations(crossed, 2)]
    return [heat_map for heat_map in found if heat_map is not None]


def _scored(groups: Sequence[Group], column: str) -> Scored:
    """The groups with finished runs, and the scores of these."""
    scores = [(group, scores_of(group, "final", column).values.tolist()) for group in groups]
    return [(group, values) for group, values in scores if values]


def _numeric_settings(groups: Sequence[Group]) -> list[str]:
    names = dict.fromkeys(name for group in groups for name in group.settings)
    return [name for name in names if len(_values(groups, name)) > 1 and not name.startswith("run.")]


def _values(groups: Sequence[Group], setting: str) -> list[Any]:
    """Numbers of ``setting`` ascending, then null; none where it takes anything else."""
    values = [group.settings[setting] for group in groups if setting in group.settings]
    if not all(is_number(value) or value is None for value in values):
        return []
    numbers = sorted({float(value) for value in values if value is not None})
    return [*numbers, *([None] if None in values and numbers else [])]


def _families(settings: Sequence[str], scored: Scored) -> tuple[list[list[Any]], Families]:
    """The values of the ``settings``, and by everything else the scores at places among these."""
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
    if len(families) > _MOST_LINES:
        # Only those with every value: else a value's mean would say which settings it was tried with.
        whole = [points for points in families.values() if len(points) == len(values)]
        if not whole:
            return None
        lines = [_line("mean over all other settings", 0, whole)]
        short = f" ({len(whole)} of {len(families)}: those with all values)" if len(whole) < len(families) else ""
        note = f"over {len(whole)} combinations of the other settings{short}"
    else:
        named = _names(list(families))
        items = zip(named, families.values(), strict=True)
        lines = [_line(name, series, [points]) for series, (name, points) in enumerate(items)]
        note = "; ".join(named) if len(named) == 1 else ""
    return chart(env, lines, note=note, x_label=setting, ticks=tuple(map(shown, values)))


def _names(keys: list[tuple[Any, ...]]) -> list[str]:
    """The recipe, and the settings that differ between the combinations."""
    rests = [dict(key[1:]) for key in keys]
    names = dict.fromkeys(name for rest in rests for name in rest)
    differing = [name for name in names if len({rest.get(name) for rest in rests}) > 1]
    return [
        " ".join([key[0], *(f"{short_name(n, differing)}={rest[n][0]}" for n in differing if n in rest)])
        for key, rest in zip(keys, rests, strict=True)
    ]


def _line(label: str, series: int, families: Sequence[Sequence[tuple[int, list[float]]]]) -> Line:
    """The mean over families at the places they share, each weighing the same, with the interval over runs in each."""
    places = [place for place, _ in families[0]]
    runs = [[points[i][1] for points in families] for i in range(len(places))]
    found = [stratified_estimate(each, mean, resamples=_RESAMPLES) for each in runs]
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
