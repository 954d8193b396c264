"""The HTML of a report and its sections."""

from __future__ import annotations

from functools import cache, partial
from itertools import chain

import jinja2
import yaml
from markupsafe import Markup

from torchrl_reg.lab.analysis import statistics
from torchrl_reg.lab.analysis.curves import DARK, LIGHT, Chart, chart
from torchrl_reg.lab.analysis.groups import short_name
from torchrl_reg.lab.analysis.numbers import amount, hours, number, score_text
from torchrl_reg.lab.analysis.report import scores
from torchrl_reg.lab.analysis.report.scores import heat_maps, responses
from torchrl_reg.lab.analysis.report.svg import coordinate, drawing
from torchrl_reg.lab.analysis.report.sweep import Sweep
from torchrl_reg.lab.analysis.scores import scale_of
from torchrl_reg.lab.analysis.tables import unscored_note


def render(template: str, **context: object) -> Markup:
    """``template`` with ``context``; text is escaped, :class:`Markup` is not."""
    return Markup(_environment().get_template(template).render(context))


def series_class(series: int) -> str:
    """CSS classes of a series: its colour, and dashes once the colours repeat."""
    dashes = f" d{min(series // len(LIGHT), 3)}" if series >= len(LIGHT) else ""
    return f"s{series % len(LIGHT)}{dashes}"


def svg(chart: Chart) -> Markup:
    """``chart`` as an HTML figure."""
    return render("chart.html", chart=chart, **drawing(chart))


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("torchrl_reg.lab.analysis.report", "")
    found = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    found.globals |= {"light": LIGHT, "dark": DARK}
    filters = (series_class, svg, coordinate, amount, hours, number, score_text, short_name)
    found.filters |= {filter.__name__: filter for filter in filters}
    found.filters["yaml"] = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True)
    return found


#: Methods shown at first; the legend toggles the others.
_MAX_SHOWN = 8


def report_html(sweep: Sweep) -> str:
    """The report on ``sweep`` as one HTML page that loads no other files."""
    best = scores.ranked(sweep)[:_MAX_SHOWN]
    scale, comparison = scores.compared(sweep)
    lines, beyond = scores.profiles(sweep)
    score_name = f"{sweep.column.removeprefix('return_').removesuffix('_mean')} return"
    return render(
        "report.html",
        sweep=sweep,
        score_name=score_name,
        hidden={series for series, method in enumerate(sweep.methods) if method not in best},
        summary=scores.summary_table(sweep),
        over_all=scores.ALL if comparison else "",
        scale=scale,
        warnings=_warnings(sweep),
        curves=[_curves(sweep, env, score_name) for env in sweep.envs],
        profile=chart(
            "share of runs above a score",
            lines,
            note=f"{len(sweep.envs)} environments",
            x_label="scaled score",
            span=(0.0, 1.0),
        ),
        beyond=statistics.beyond_note(beyond) if beyond else "",
        responses=responses(sweep.groups, sweep.column),
        heat_maps=heat_maps(sweep.groups, sweep.column),
        diagnostics={env: _diagnostics(sweep, env) for env in sweep.envs},
        facts=_facts(sweep),
    )


def _warnings(sweep: Sweep) -> list[str]:
    """Caveats about the numbers."""
    commits, unfinished = sweep.commits, len(sweep.in_state("unfinished"))
    endless = [sweep.shown_path(run) for run in sweep.in_state("done") if run.ends_without(sweep.column)]
    frames = {sweep.shown_path(run): run.diverged_frames for run in sweep.runs}
    diverged = [f"{path} at frame {at:,}" for path, at in frames.items() if at is not None]
    runs = "1 run is" if unfinished == 1 else f"{unfinished} runs are"
    found = {
        f"Runs come from {len(commits)} commits: {', '.join(commits)}.": len(commits) > 1,
        "Runs marked + had uncommitted changes.": any(commit.endswith("+") for commit in commits),
        f"{runs} not finished; the summary leaves out what is not.": unfinished,
        **{f"Left out: {sentence}": True for sentence in sweep.skipped},
        f"Scores leave out runs whose last evaluation is not a finite number: {', '.join(endless)}.": endless,
        f"Values diverged in {', '.join(diverged)}.": diverged,
        **{f"{sentence}.": True for sentence in unscored_note(sweep.envs, scale_of(sweep.envs))},
        "Some methods have fewer than three seeds: their intervals say little or nothing.": any(
            len(group.runs) < 3 for group in sweep.groups
        ),
    }
    return [sentence for sentence, holds in found.items() if holds]


def _curves(sweep: Sweep, env: str, note: str) -> Chart | None:
    """Learning curves on ``env``."""
    groups, place = sweep.of_env(env), sweep.methods.index
    return chart(env, [scores.learning_curve(g, sweep.column, place(g.method)) for g in groups], note=note)


def _diagnostics(sweep: Sweep, env: str) -> list[Chart | None]:
    """Small charts of the training return and the diagnostics of losses."""
    groups, charts = sweep.of_env(env), []
    for name in scores.diagnostic_names(groups):
        lines = [scores.diagnostic_line(group, name, sweep.methods.index(group.method)) for group in groups]
        title = "training return" if name == "return_mean" else name
        charts.append(chart(title, lines, small=True, x_label="", may_log=name != "return_mean"))
    return charts


def _facts(sweep: Sweep) -> dict[str, list[str]]:
    """Commits, hosts, devices, versions and times of the starts of all runs."""
    starts = [start for run in sweep.runs for start in run.starts]
    machines = [{"hosts": s.get("host"), "devices": s.get("device"), **(s.get("versions") or {})} for s in starts]
    facts: dict[str, list[object]] = {"commits": [*sweep.commits]}
    facts |= {str(name): [each.get(name) for each in machines] for name in dict.fromkeys(chain(*machines))}
    times = sorted(str(start["started_at"]) for start in starts if start.get("started_at"))
    facts["started"] = [" to ".join(dict.fromkeys((times[0], times[-1])))] if times else []
    found = {name: list(dict.fromkeys(str(value) for value in values if value)) for name, values in facts.items()}
    return {name: values for name, values in found.items() if values}
