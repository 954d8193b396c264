"""The summary table: a row a method and a column an environment, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchrl_reg.analysis.report.scores import compared, ranked
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.scores import Array
from torchrl_reg.analysis.statistics import Estimate, interquartile_mean, mean, stratified_estimate

#: Heading of the column over all environments.
ALL = "all, scaled IQM"
#: With more environments than this, and than methods, they are the rows; with more methods these are sorted.
_MOST_COLUMNS, _MOST_UNSORTED = 6, 8


@dataclass(frozen=True)
class Cell:
    """A score, whether of several runs and the best; ``bar``: low, high, value in percent of the column's span."""

    score: Estimate
    several: bool
    best: bool
    bar: tuple[float, ...] | None


@dataclass(frozen=True)
class Row:
    """A method: its place among them, a cell a column, finished seeds and commits.

    A cell is None where the method has no runs, ``"unfinished"`` where none of them is finished.
    """

    method: str
    series: int
    cells: list[Cell | str | None]
    seeds: list[tuple[str, str]]
    commits: list[str]


@dataclass(frozen=True)
class SummaryTable:
    """``tall``: the rows of the page are the environments."""

    columns: list[str]
    rows: list[Row]
    tall: bool


def summary_table(sweep: Sweep) -> SummaryTable:
    """Final scores with intervals, numbers of seeds and commits; many methods from the best mean rank down.

    A best score is marked where its interval lies above those of all others.
    """
    columns: dict[str, dict[str, list[Array]]] = {}
    if over_all := compared(sweep)[1]:
        columns[ALL] = over_all
    for env in sweep.envs:
        columns[env] = {each.group.method: [each.values] for each in sweep.scores if each.group.env == env}
    cells = {env: _cells(runs, env) for env, runs in columns.items()}
    rows = []
    for method in ranked(sweep) if len(sweep.methods) > _MOST_UNSORTED else sweep.methods:
        commits = [commit for group in sweep.groups if group.method == method for commit in group.commits]
        line = [column.get(method) for column in cells.values()]
        seeds = _seeds(method, sweep)
        rows.append(Row(method, sweep.methods.index(method), line, seeds, list(dict.fromkeys(commits))))
    return SummaryTable(list(columns), rows, len(columns) > max(_MOST_COLUMNS, len(rows)))


def _cells(column: Mapping[str, list[Array]], name: str) -> dict[str, Cell | str]:
    """By method; an interval of one run has no width and says nothing."""
    estimator = interquartile_mean if name == ALL else mean
    counts = {method: sum(map(len, runs)) for method, runs in column.items()}
    there = {m: stratified_estimate(column[m], estimator, resamples=2_000) for m, count in counts.items() if count}
    low, high = min((e.low for e in there.values()), default=0.0), max((e.high for e in there.values()), default=0.0)
    found: dict[str, Cell | str] = dict.fromkeys(column, "unfinished")
    for method, score in there.items():
        others = [other for other in there if other != method]
        above = all(score.low > there[other].high for other in others)
        best = bool(others) and above and all(counts[each] > 1 for each in there)
        ends = ((end - low) / (high - low) * 100 for end in (score.low, score.high, score.value)) if high > low else ()
        found[method] = Cell(score, counts[method] > 1, best, tuple(ends) or None)
    return found


def _seeds(method: str, sweep: Sweep) -> list[tuple[str, str]]:
    """Finished of all, per environment where a few environments differ."""
    scores = [each for each in sweep.scores if each.group.method == method]
    counts = [(len(each.values), len(each.group.runs)) for each in scores]
    texts = [str(total) if done == total else f"{done} of {total}" for done, total in counts]
    if len(set(texts)) == 1:
        return [(texts[0], "")]
    if len(scores) > _MOST_COLUMNS:
        return [(f"{sum(done for done, _ in counts)} of {sum(total for _, total in counts)}", "runs")]
    return [(text, each.group.env) for text, each in zip(texts, scores, strict=True)]
