"""The sections of a report, each a piece of HTML; empty where there is nothing to say."""

from __future__ import annotations

from html import escape
from typing import Any

from torchrl_reg.analysis.groups import short_name
from torchrl_reg.analysis.report.chart import Line, amount, line_chart, series_class
from torchrl_reg.analysis.report.responses import HeatMap, heat_maps, responses
from torchrl_reg.analysis.report.scores import (
    diagnostic_line,
    diagnostic_names,
    effort,
    learning_curve,
    profiles,
    scaled_scores,
)
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.report.table import ALL, heat_cell, summary_table
from torchrl_reg.analysis.runs import RunRecord
from torchrl_reg.analysis.scores import scale_of, unscored_note
from torchrl_reg.analysis.statistics import beyond_note

#: With more methods than these, the legend starts with the best few on.
_MOST_SHOWN = 8


def header(sweep: Sweep) -> str:
    """Title, question, and the size of it all in numbers."""
    runs = sweep.runs
    states = [sweep.state(run) for run in runs]
    spent = effort(runs)
    seeds = sorted({len(group.runs) for group in sweep.groups})
    tiles = [
        (f"{states.count('done')} of {len(runs) + len(sweep.not_begun)}", "runs finished"),
        (str(sweep.waiting), "waiting") if sweep.waiting else None,
        (str(len(sweep.failures)), "failed") if sweep.failures else None,
        (str(len(sweep.methods)), "method" if len(sweep.methods) == 1 else "methods"),
        (str(len(sweep.envs)), "environment" if len(sweep.envs) == 1 else "environments"),
        ("–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))), "seeds each") if seeds else None,
        (amount(spent.frames), "frames"),
        (_hours(spent.seconds), "of run time"),
    ]
    shown = "".join(f"<div><b>{value}</b> {label}</div>" for value, label in filter(None, tiles))
    question = f'<p class="question">{escape(sweep.question)}</p>' if sweep.question else ""
    name = escape(sweep.name).replace("_", "_<wbr>")
    return f'<header><h1>{name}</h1>{question}<div class="tiles">{shown}</div>{_warnings(sweep)}</header>'


def legend(sweep: Sweep, hidden: set[int]) -> str:
    """A button a method, which shows or hides it in every chart."""
    if not sweep.groups:
        return ""
    buttons = "".join(
        f'<button type="button" data-toggle="{series}" aria-pressed="{"false" if series in hidden else "true"}">'
        f'<i class="key {series_class(series)}"></i>{escape(method)}</button>'
        for series, method in enumerate(sweep.methods)
    )
    hint = '<span class="hint">click to hide, double-click for one alone</span>' if len(sweep.methods) > 1 else ""
    return f'<nav class="legend" aria-label="methods">{buttons}{hint}</nav>'


def initially_hidden(sweep: Sweep) -> set[int]:
    """Methods the legend starts without: all but the best few, by mean rank over the environments."""
    if len(sweep.methods) <= _MOST_SHOWN:
        return set()
    ranks: dict[str, list[float]] = {method: [] for method in sweep.methods}
    for env in sweep.envs:
        last = {}
        for group in sweep.of_env(env):
            curve = learning_curve(group, sweep.column, 0)
            last[group.method] = -curve.y[-1] if curve is not None and len(curve.y) else float("inf")
        for place, method in enumerate(sorted(last, key=lambda name: last[name])):
            ranks[method].append(place)
    mean = {method: sum(r) / len(r) if r else float("inf") for method, r in ranks.items()}
    best = sorted(sweep.methods, key=lambda name: mean[name])[:_MOST_SHOWN]
    return {series for series, method in enumerate(sweep.methods) if method not in best}


def summary(sweep: Sweep) -> str:
    """The table."""
    if not sweep.groups:
        return ""
    what = _return_name(sweep.column)
    note = (
        f"Last evaluation ({what}) of the finished runs: mean over seeds, in brackets a 95% bootstrap interval of that "
        "mean. Bars place the interval between the lowest and the highest of an environment."
    )
    scaled = scaled_scores(sweep)
    if scaled.runs:
        note += f" “{ALL}” is the interquartile mean over runs and environments on a scale where {scaled.scale}."
    return _section("summary", "Summary", note, summary_table(sweep))


def curves(sweep: Sweep) -> str:
    """Learning curves, one chart an environment."""
    charts = []
    for env in sweep.envs:
        lines = [
            line
            for group in sweep.of_env(env)
            if (line := learning_curve(group, sweep.column, sweep.methods.index(group.method))) is not None
        ]
        charts.append(line_chart(env, lines, note=_return_name(sweep.column)))
    note = (
        "Mean over seeds (their number in brackets in the read-out) with a 95% bootstrap interval, as far as every "
        "seed got; dashed beyond, over those that got there."
    )
    return _section("curves", "Learning curves", note, _grid(charts, many=len(charts) > 6))


def profile(sweep: Sweep) -> str:
    """Performance profiles, where there are several environments."""
    lines, beyond = profiles(sweep) if len(sweep.envs) > 1 else ([], 0.0)
    if not lines:
        return ""
    chart = line_chart(
        "share of runs above a score",
        lines,
        note=f"{len(sweep.envs)} environments",
        x_label="scaled score",
        span=(0.0, 1.0),
    )
    note = (
        "Run-score distributions, averaged over environments, with 95% stratified-bootstrap intervals; "
        f"{scaled_scores(sweep).scale}. Higher is better."
    )
    if beyond:
        note += f" {beyond_note(beyond)}.".replace("beyond", "beyond the right end")
    return _section("profiles", "Performance profiles", note, _grid([chart]))


def settings(sweep: Sweep) -> str:
    """Score against each numeric setting that varies, and over pairs of them."""
    found = responses(sweep.groups, sweep.column)
    names = list(dict.fromkeys(response.setting for response in found))
    charts = []
    for response in found:
        ticks = [(float(place), text) for place, text in enumerate(response.values)]
        title = f"{short_name(response.setting, names)} on {response.env}"
        charts.append(
            line_chart(title, response.lines, note=response.note, x_label=response.setting, ticks=ticks, dots=True)
            + _own_legend(response.lines)
        )
    grid = _grid(charts, own=True) if charts else ""
    maps = "".join(_heat_table(heat_map) for heat_map in heat_maps(sweep.groups, sweep.column))
    if not grid and not maps:
        return ""
    note = "Final score against one setting, everything else equal; bars are 95% bootstrap intervals over seeds."
    if maps:
        heading = '<h3>Two settings at a time</h3><p class="note">Mean over everything else.</p>'
        maps = f'{heading}<div class="maps">{maps}</div>'
    return _section("settings", "Hyperparameters", note, grid + maps)


def diagnostics(sweep: Sweep) -> str:
    """What the losses report beside the training return, as small multiples, an environment at a time."""
    parts = []
    for env in sweep.envs:
        groups = sweep.of_env(env)
        charts = []
        for name in diagnostic_names(groups):
            lines = [
                line
                for group in groups
                if (line := diagnostic_line(group, name, sweep.methods.index(group.method))) is not None
            ]
            shown = "training return" if name == "return_mean" else name
            charts.append(line_chart(shown, lines, small=True, x_label="", may_log=name != "return_mean"))
        if any(charts):
            opened = " open" if len(sweep.envs) <= 4 else ""
            parts.append(f"<details{opened}><summary>{escape(env)}</summary>{_grid(charts, small=True)}</details>")
    note = "Means over the updates between two log rows, then over seeds; over frames."
    return _section("diagnostics", "Diagnostics", note, "".join(parts)) if parts else ""


def failures(sweep: Sweep) -> str:
    """What failed, with its last words."""
    if not sweep.failures:
        return ""
    rows = "".join(
        f"<tr><td><code>{escape(failure.path)}</code></td><td class=num>{escape(failure.returncode)}</td>"
        f"<td>{escape(failure.ended_at)}</td><td><samp>{escape(failure.last_line)}</samp></td></tr>"
        for failure in sweep.failures
    )
    head = "<tr><th>run</th><th class=num>exit code</th><th>ended</th><th>last line</th></tr>"
    table = f'<div class="scroll"><table class="failures"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return _section("failures", "Failures", "", table)


def commands(sweep: Sweep) -> str:
    """The exact command, state and place of every run, folded by method."""
    parts = []
    for method in sweep.methods:
        runs = [run for group in sweep.groups if group.method == method for run in group.runs]
        rows = "".join(_command_row(sweep, run) for run in runs)
        title = f"{escape(method)} <small>{len(runs)} {'run' if len(runs) == 1 else 'runs'}</small>"
        parts.append(f'<details><summary>{title}</summary><div class="commands">{rows}</div></details>')
    return _section("commands", "Commands", "", "".join(parts)) if parts else ""


def provenance(sweep: Sweep) -> str:
    """Commits, versions, hosts and devices, and the plan the runs come from."""
    starts = [start for run in sweep.runs for start in run.starts]
    facts: dict[str, list[str]] = {
        "commits": [commit for run in sweep.runs for commit in run.short_commits],
        "hosts": [str(start["host"]) for start in starts if start.get("host")],
        "devices": [str(start["device"]) for start in starts if start.get("device")],
    }
    for start in starts:
        for name, version in (start.get("versions") or {}).items():
            facts.setdefault(str(name), []).append(str(version))
    times = sorted(str(start["started_at"]) for start in starts if start.get("started_at"))
    if times:
        facts["started"] = [" to ".join(dict.fromkeys((times[0], times[-1])))]
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(', '.join(dict.fromkeys(values)))}</dd></div>"
        for name, values in facts.items()
        if values
    )
    return _section("provenance", "Provenance", "", f'<dl class="facts">{rows}</dl>{_plan(sweep.plan)}') if rows else ""


def _command_row(sweep: Sweep, run: RunRecord) -> str:
    state = sweep.state(run)
    frames = run.frames
    total = run.config.get("algo.total_frames")
    detail = [run.env, f"seed {run.seed}", state if state == "done" else f"{state} at {amount(frames)} frames"]
    if state != "done" and isinstance(total, int | float):
        detail[-1] += f" of {amount(total)}"
    if state == "done":
        detail.append(_hours(effort([run]).seconds))
    detail += dict.fromkeys(str(start.get("host")) for start in run.starts if start.get("host"))
    return (
        f'<div class="{state}"><p>{escape(" · ".join(detail))} <code>{escape(sweep.shown_path(run))}</code></p>'
        f"<pre>{escape(run.command or 'no command.txt')}</pre></div>"
    )


def _warnings(sweep: Sweep) -> str:
    found = []
    commits = dict.fromkeys(commit for run in sweep.runs for commit in run.short_commits)
    if len(commits) > 1:
        found.append(f"Runs come from {len(commits)} commits: {', '.join(commits)}.")
    if any(commit.endswith("+") for commit in commits):
        found.append("Runs marked + had uncommitted changes.")
    unfinished = [run for run in sweep.runs if sweep.state(run) == "unfinished"]
    if unfinished:
        runs = "1 run is" if len(unfinished) == 1 else f"{len(unfinished)} runs are"
        found.append(f"{runs} not finished; the summary leaves out what is not.")
    found += [f"Left out: {sentence}" for sentence in sweep.skipped]
    endless = [sweep.shown_path(run) for run in sweep.runs if run.done is not None and run.ends_without(sweep.column)]
    if endless:
        found.append(f"Scores leave out runs whose last evaluation is not a finite number: {', '.join(endless)}.")
    found += [f"{sentence}." for sentence in unscored_note(sweep.envs, scale_of(sweep.envs))]
    few = {len(group.runs) for group in sweep.groups if len(group.runs) < 3}
    if few:
        found.append("Some methods have fewer than three seeds: their intervals say little or nothing.")
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in found)


def _heat_table(heat_map: HeatMap) -> str:
    values = [value for row in heat_map.cells for value in row if value is not None]
    low, high = min(values), max(values)
    head = "".join(f"<th>{escape(text)}</th>" for text in heat_map.column_values)
    rows = "".join(
        f'<tr><th scope="row">{escape(text)}</th>'
        + "".join(heat_cell(value, count, low, high) for value, count in zip(cells, counts, strict=True))
        + "</tr>"
        for text, cells, counts in zip(heat_map.row_values, heat_map.cells, heat_map.counts, strict=True)
    )
    one, other = (short_name(name, (heat_map.rows, heat_map.columns)) for name in (heat_map.rows, heat_map.columns))
    return (
        f'<figure class="map"><figcaption>{escape(heat_map.recipe)} on {escape(heat_map.env)} <small>'
        f"{escape(one)} down, {escape(other)} across{escape('; ' * bool(heat_map.note) + heat_map.note)}"
        f"</small></figcaption><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></figure>"
    )


def _own_legend(lines: tuple[Line, ...]) -> str:
    if len(lines) < 2:
        return ""
    keys = "".join(
        f'<span><i class="key {series_class(line.series)}"></i>{escape(line.label)}</span>' for line in lines
    )
    return f'<div class="keys">{keys}</div>'


def _plan(plan: dict[str, Any]) -> str:
    if not plan:
        return ""
    import yaml

    text = yaml.safe_dump(plan, sort_keys=False, allow_unicode=True)
    return f"<details><summary>sweep.yaml</summary><pre>{escape(text)}</pre></details>"


def _section(name: str, title: str, note: str, body: str) -> str:
    if not body:
        return ""
    shown = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{shown}{body}</section>'


def _grid(charts: list[str], *, small: bool = False, own: bool = False, many: bool = False) -> str:
    """``own``: the charts' colours are theirs, not the legend's; ``many``: three in a row."""
    kind = f"grid{' small' if small else ''}{' own' if own else ''}{' many' if many else ''}"
    cells = "".join(f"<div>{chart}</div>" for chart in charts if chart)
    return f'<div class="{kind}">{cells}</div>' if cells else ""


def _return_name(column: str) -> str:
    return f"{column.removeprefix('return_').removesuffix('_mean')} return"


def _hours(seconds: float) -> str:
    """Seconds as hours, or what is below.

    >>> _hours(40), _hours(600), _hours(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds >= 3600:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 60:.3g} min" if seconds >= 60 else f"{seconds:.0f} s"
