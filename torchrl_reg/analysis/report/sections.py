"""What a report says, section by section, for the template ``report.html``; the same for the same runs."""

from __future__ import annotations

from typing import Any

from torchrl_reg.analysis.groups import short_name
from torchrl_reg.analysis.notes import unscored_note
from torchrl_reg.analysis.numbers import amount, hours
from torchrl_reg.analysis.report.chart import Line, line_chart
from torchrl_reg.analysis.report.page import filled
from torchrl_reg.analysis.report.responses import heat_maps, responses
from torchrl_reg.analysis.report.scores import (
    compared,
    diagnostic_line,
    diagnostic_names,
    learning_curve,
    profiles,
    ranked,
)
from torchrl_reg.analysis.report.sweep import Sweep
from torchrl_reg.analysis.report.table import ALL, summary_table
from torchrl_reg.analysis.runs import RunRecord
from torchrl_reg.analysis.scores import scale_of
from torchrl_reg.analysis.statistics import beyond_note

#: What 0 and 1 of a scale are, in words.
_SCALES = {
    "human": "0 is the random policy and 1 a human",
    "sac": "0 is the random policy and 1 is SAC",
    "range": "0 is the worst finished run of an environment in this sweep and 1 its best",
}
#: With more methods than these, the legend starts with the best few on.
_MOST_SHOWN = 8


def report_html(sweep: Sweep) -> str:
    """The whole report on ``sweep``: one HTML text that loads nothing."""
    best = ranked(sweep)[:_MOST_SHOWN]
    return filled(
        "report.html",
        sweep=sweep,
        tiles=_tiles(sweep),
        warnings=_warnings(sweep),
        hidden={series for series, method in enumerate(sweep.methods) if method not in best},
        summary=summary_table(sweep),
        summary_note=_summary_note(sweep),
        curves=_curves(sweep),
        profile=_profile(sweep),
        responses=_responses(sweep),
        heat_maps=heat_maps(sweep.groups, sweep.column),
        diagnostics=_diagnostics(sweep),
        commands=[
            (method, [_command(sweep, run) for group in sweep.groups if group.method == method for run in group.runs])
            for method in sweep.methods
        ],
        facts=_facts(sweep),
        plan=_plan(sweep.plan),
    )


def _tiles(sweep: Sweep) -> list[tuple[str, str]]:
    """The size of it all in numbers."""
    runs = sweep.runs
    done = sum(sweep.state(run) == "done" for run in runs)
    frames, seconds = sum(run.frames for run in runs), sum(run.wall_seconds for run in runs)
    seeds = sorted({len(group.runs) for group in sweep.groups})
    tiles = [
        (f"{done} of {len(runs) + len(sweep.not_begun)}", "runs finished"),
        (str(sweep.waiting), "waiting") if sweep.waiting else None,
        (str(len(sweep.failures)), "failed") if sweep.failures else None,
        (str(len(sweep.methods)), "method" if len(sweep.methods) == 1 else "methods"),
        (str(len(sweep.envs)), "environment" if len(sweep.envs) == 1 else "environments"),
        ("–".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))), "seeds each") if seeds else None,
        (amount(frames), "frames"),
        (hours(seconds), "of run time"),
    ]
    return [tile for tile in tiles if tile is not None]


def _summary_note(sweep: Sweep) -> str:
    note = (
        f"Last evaluation ({_return_name(sweep.column)}) of the finished runs: mean over seeds, in brackets a 95% "
        "bootstrap interval of that mean. Bars place the interval between the lowest and the highest of an environment."
        " Bold is what lies above all other intervals."
    )
    scale, scaled = compared(sweep)
    if scaled:
        note += f" “{ALL}” is the interquartile mean over runs and environments on a scale where {_SCALES[scale]}."
    return note


def _curves(sweep: Sweep) -> list[str]:
    """Learning curves, one chart an environment."""
    charts = []
    for env in sweep.envs:
        found = [learning_curve(g, sweep.column, sweep.methods.index(g.method)) for g in sweep.of_env(env)]
        charts.append(line_chart(env, [line for line in found if line], note=_return_name(sweep.column)))
    return charts


def _profile(sweep: Sweep) -> dict[str, str]:
    """Performance profiles, where there are several environments."""
    lines, beyond = profiles(sweep) if len(sweep.envs) > 1 else ([], 0.0)
    title, label = "share of runs above a score", "scaled score"
    chart = line_chart(title, lines, note=f"{len(sweep.envs)} environments", x_label=label, span=(0.0, 1.0))
    note = (
        "Run-score distributions, averaged over environments, with 95% stratified-bootstrap intervals; "
        f"{_SCALES[compared(sweep)[0]]}. Higher is better."
    )
    if beyond:
        note += f" {beyond_note(beyond)}.".replace("beyond", "beyond the right end")
    return {"chart": chart, "note": note}


def _responses(sweep: Sweep) -> list[tuple[str, tuple[Line, ...]]]:
    """Score against each numeric setting that varies."""
    found = responses(sweep.groups, sweep.column)
    names = list(dict.fromkeys(response.setting for response in found))
    charts = []
    for response in found:
        ticks = [(float(place), text) for place, text in enumerate(response.values)]
        title = f"{short_name(response.setting, names)} on {response.env}"
        x_label = response.setting
        chart = line_chart(title, response.lines, note=response.note, x_label=x_label, ticks=ticks, dots=True)
        charts.append((chart, response.lines))
    return charts


def _diagnostics(sweep: Sweep) -> list[tuple[str, list[str]]]:
    """What the losses report beside the training return, as small multiples, an environment at a time."""
    parts = []
    for env in sweep.envs:
        groups = sweep.of_env(env)
        charts = []
        for name in diagnostic_names(groups):
            found = [diagnostic_line(group, name, sweep.methods.index(group.method)) for group in groups]
            shown = "training return" if name == "return_mean" else name
            lines = [line for line in found if line]
            charts.append(line_chart(shown, lines, small=True, x_label="", may_log=name != "return_mean"))
        if any(charts):
            parts.append((env, charts))
    return parts


def _command(sweep: Sweep, run: RunRecord) -> dict[str, str]:
    """State, place and exact command of a run."""
    state = sweep.state(run)
    total = run.config.get("algo.total_frames")
    detail = [run.env, f"seed {run.seed}", state if state == "done" else f"{state} at {amount(run.frames)} frames"]
    if state == "done":
        detail.append(hours(run.wall_seconds))
    elif isinstance(total, int | float):
        detail[-1] += f" of {amount(total)}"
    detail += dict.fromkeys(str(start.get("host")) for start in run.starts if start.get("host"))
    shown = {"state": state, "detail": " · ".join(detail), "path": sweep.shown_path(run)}
    return shown | {"command": run.command or "no command.txt"}


def _facts(sweep: Sweep) -> list[tuple[str, str]]:
    """Commits, versions, hosts and devices."""
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
    return [(name, ", ".join(dict.fromkeys(values))) for name, values in facts.items() if values]


def _warnings(sweep: Sweep) -> list[str]:
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
    if any(len(group.runs) < 3 for group in sweep.groups):
        found.append("Some methods have fewer than three seeds: their intervals say little or nothing.")
    return found


def _plan(plan: dict[str, Any]) -> str:
    if not plan:
        return ""
    import yaml

    return yaml.safe_dump(plan, sort_keys=False, allow_unicode=True)


def _return_name(column: str) -> str:
    return f"{column.removeprefix('return_').removesuffix('_mean')} return"
