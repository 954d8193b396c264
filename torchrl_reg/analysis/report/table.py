"""The summary table: a row a method and a column an environment, or the other way round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from torchrl_reg.analysis.groups import Group
from torchrl_reg.analysis.report.chart import number, series_class
from torchrl_reg.analysis.report.scores import aggregate, estimate, final_scores, scaled_scores
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.statistics import Estimate

#: Heading of the column over all environments.
ALL = "all, scaled IQM"
#: With more environments than this, and than methods, they are the rows.
_MOST_COLUMNS = 6


def score_text(value: float) -> str:
    """A score with three or four digits.

    >>> score_text(0.98765), score_text(-147.8412), score_text(12345.6), score_text(3)
    ('0.988', '−147.8', '12346', '3.00')
    """
    size = abs(value)
    text = f"{size:.0f}" if size >= 1000 else f"{size:.1f}" if size >= 100 else f"{size:#.3g}"
    return f"−{text}" if value < 0 and float(text) else text


def summary_table(sweep: Sweep) -> str:
    """Final scores with intervals, numbers of seeds and commits; the best mean of an environment in bold."""
    scores = {(group.method, group.env): final_scores(group, sweep.column) for group in sweep.groups}
    estimates = {key: estimate(values) for key, values in scores.items()}
    columns = list(sweep.envs)
    for method, scaled in scaled_scores(sweep).runs.items():
        columns = [ALL, *sweep.envs]
        estimates[method, ALL], scores[method, ALL] = aggregate(scaled), np.concatenate(scaled).tolist()
    spans, best = {}, {}
    for env in columns:
        found = [e for method in sweep.methods if (e := estimates.get((method, env))) is not None]
        if found:
            spans[env] = (min(e.low for e in found), max(e.high for e in found))
            best[env] = max(e.value for e in found) if len(found) > 1 else None
    cells = {
        (method, env): _cell(estimates[method, env], len(scores[method, env]), spans.get(env), best.get(env))
        if (method, env) in scores
        else "<td></td>"
        for method in sweep.methods
        for env in columns
    }
    tall = len(columns) > max(_MOST_COLUMNS, len(sweep.methods))
    body = _row_an_env(sweep, columns, cells) if tall else _row_a_method(sweep, columns, cells)
    return f'<div class="scroll"><table class="summary">{body}</table></div>'


def _row_a_method(sweep: Sweep, columns: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    heads = "".join(f'<th class="num">{escape(env)}</th>' for env in columns)
    rows = []
    for series, method in enumerate(sweep.methods):
        members = [group for group in sweep.groups if group.method == method]
        rows.append(
            f'<tr data-row="{series}"><th scope="row">{_key(series)}{escape(method)}</th>'
            f"{''.join(cells[method, env] for env in columns)}"
            f'<td class="num">{_seeds(members, sweep)}</td><td class="commits">{_commits(members)}</td></tr>'
        )
    head = f'<tr><th>method</th>{heads}<th class="num">seeds</th><th>commit</th></tr>'
    return f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"


def _row_an_env(sweep: Sweep, columns: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    heads = "".join(f'<th class="num">{_key(s)}{escape(method)}</th>' for s, method in enumerate(sweep.methods))
    rows = [
        f'<tr><th scope="row">{escape(env)}</th>{"".join(cells[method, env] for method in sweep.methods)}</tr>'
        for env in columns
    ]
    members = [[group for group in sweep.groups if group.method == method] for method in sweep.methods]
    seeds = "".join(f'<td class="num">{_seeds(each, sweep)}</td>' for each in members)
    commits = "".join(f'<td class="num commits">{_commits(each)}</td>' for each in members)
    rows.append(f'<tr><th scope="row">seeds</th>{seeds}</tr><tr><th scope="row">commit</th>{commits}</tr>')
    return f"<thead><tr><th>environment</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _key(series: int) -> str:
    return f'<i class="key {series_class(series)}"></i>'


def _cell(found: Estimate | None, count: int, span: tuple[float, float] | None, best: float | None) -> str:
    if found is None or span is None:
        return '<td class="num none">no finished run</td>'
    bold = ' class="best"' if found.value == best else ""
    low, high = score_text(found.low), score_text(found.high)
    interval = f"<small>[{low}, {high}]</small>" if count > 1 else ""
    return f'<td class="num"><b{bold}>{score_text(found.value)}</b> {interval}{_bar(found, *span)}</td>'


def _bar(found: Estimate, low: float, high: float) -> str:
    """The interval on the environment's scale."""
    if high <= low:
        return ""
    left, right, middle = ((value - low) / (high - low) * 100 for value in (found.low, found.high, found.value))
    return (
        f'<span class="interval" aria-hidden="true"><i style="left:{left:.1f}%;right:{100 - right:.1f}%"></i>'
        f'<b style="left:{middle:.1f}%"></b></span>'
    )


def _seeds(groups: Sequence[Group], sweep: Sweep) -> str:
    """Finished of all, per environment where a few environments differ."""
    counts = [(len(final_scores(group, sweep.column)), len(group.runs)) for group in groups]
    texts = [str(total) if done == total else f"{done} of {total}" for done, total in counts]
    if len(set(texts)) == 1:
        return texts[0]
    if len(groups) > _MOST_COLUMNS:
        return f"{sum(done for done, _ in counts)} of {sum(total for _, total in counts)} <small>runs</small>"
    named = zip(texts, groups, strict=True)
    return "<br>".join(f"{text} <small>{escape(group.env)}</small>" for text, group in named)


def _commits(groups: Sequence[Group]) -> str:
    names = dict.fromkeys(commit for group in groups for commit in group.commits)
    return " ".join(f"<code>{escape(name)}</code>" for name in names)


def heat_cell(value: float | None, count: int, low: float, high: float) -> str:
    """A cell of a heat map: its colour by where ``value`` stands in ``[low, high]``."""
    if value is None:
        return '<td class="heat none">·</td>'
    share = (value - low) / (high - low) if high > low else 0.5
    tone = " dark" if share > 0.55 else ""
    return (
        f'<td class="heat{tone}" style="--share:{share * 100:.0f}%" title="mean of {count} runs">{number(value)}</td>'
    )
