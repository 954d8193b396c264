"""The summary table: a row a method and a column an environment, or the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.report.scores import aggregate, estimate, final_scores, ranked, scaled_scores
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.statistics import Estimate

#: Heading of the column over all environments.
ALL = "all, scaled IQM"
#: With more environments than this, and than methods, they are the rows; with more methods these are sorted.
_MOST_COLUMNS, _MOST_UNSORTED = 6, 8


@dataclass(frozen=True)
class Cell:
    """A score with its interval; ``bar`` are low, high and value on the environment's scale, in percent."""

    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    several: bool = False
    best: bool = False
    bar: tuple[float, float, float] | None = None
    missing: bool = False
    empty: bool = False


@dataclass(frozen=True)
class Row:
    """A method: its place among them, a cell a column, finished seeds and commits."""

    method: str
    series: int
    cells: list[Cell]
    seeds: list[tuple[str, str]]
    commits: list[str]


@dataclass(frozen=True)
class SummaryTable:
    """``tall``: the rows of the page are the environments."""

    columns: list[str]
    rows: list[Row]
    tall: bool
    note: str


def summary_table(sweep: Sweep, note: str) -> SummaryTable:
    """Final scores with intervals, numbers of seeds and commits; many methods from the best mean rank down.

    A best score is marked where its interval lies above those of all others.
    """
    scores = {(group.method, group.env): final_scores(group, sweep.column) for group in sweep.groups}
    estimates = {key: estimate(values) for key, values in scores.items()}
    columns = list(sweep.envs)
    for method, scaled in scaled_scores(sweep).runs.items():
        columns = [ALL, *sweep.envs]
        estimates[method, ALL], scores[method, ALL] = aggregate(scaled), np.concatenate(scaled).tolist()
    order = ranked(sweep) if len(sweep.methods) > _MOST_UNSORTED else sweep.methods
    cells: dict[tuple[str, str], Cell] = {}
    for env in columns:
        there = {m: found for m in sweep.methods if (found := estimates.get((m, env))) is not None}
        for method in sweep.methods:
            if (method, env) not in scores:
                cells[method, env] = Cell(empty=True)
            elif method not in there:
                cells[method, env] = Cell(missing=True)
            else:
                counts = {other: len(scores[other, env]) for other in there}
                cells[method, env] = _cell(method, there, counts)
    rows = []
    for method in order:
        members = [group for group in sweep.groups if group.method == method]
        commits = list(dict.fromkeys(commit for group in members for commit in group.commits))
        line = [cells[method, env] for env in columns]
        rows.append(Row(method, sweep.methods.index(method), line, _seeds(members, sweep), commits))
    return SummaryTable(columns, rows, len(columns) > max(_MOST_COLUMNS, len(rows)), note)


def _cell(method: str, there: dict[str, Estimate], counts: dict[str, int]) -> Cell:
    found = there[method]
    low, high = min(e.low for e in there.values()), max(e.high for e in there.values())
    bar = None
    if high > low:
        left, right, middle = ((value - low) / (high - low) * 100 for value in (found.low, found.high, found.value))
        bar = (left, right, middle)
    others = [other for other in there if other != method]
    # An interval of one run has no width and says nothing.
    best = bool(others) and all(found.low > there[o].high and counts[o] > 1 for o in others) and counts[method] > 1
    return Cell(found.value, found.low, found.high, counts[method] > 1, best, bar)


def _seeds(groups: Sequence[Group], sweep: Sweep) -> list[tuple[str, str]]:
    """Finished of all, per environment where a few environments differ."""
    counts = [(len(final_scores(group, sweep.column)), len(group.runs)) for group in groups]
    texts = [str(total) if done == total else f"{done} of {total}" for done, total in counts]
    if len(set(texts)) == 1:
        return [(texts[0], "")]
    if len(groups) > _MOST_COLUMNS:
        return [(f"{sum(done for done, _ in counts)} of {sum(total for _, total in counts)}", "runs")]
    return [(text, group.env) for text, group in zip(texts, groups, strict=True)]
