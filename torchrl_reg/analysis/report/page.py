"""The page: template, style and script of this folder filled with the sections."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template

from torchrl_reg.analysis.report import sections
from torchrl_reg.analysis.report.sweep import Sweep


def report_html(sweep: Sweep) -> str:
    """The whole report on ``sweep``: one HTML text that loads nothing; the same for the same runs."""
    hidden = sections.initially_hidden(sweep)
    parts = (
        sections.summary(sweep),
        sections.curves(sweep),
        sections.profile(sweep),
        sections.settings(sweep),
        sections.diagnostics(sweep),
        sections.failures(sweep),
        sections.commands(sweep),
        sections.provenance(sweep),
    )
    return Template(_asset("template.html")).substitute(
        title=escape(sweep.name),
        style=_asset("style.css"),
        script=_asset("script.js"),
        header=sections.header(sweep),
        legend=sections.legend(sweep, hidden),
        sections="".join(parts),
    )


def _asset(name: str) -> str:
    return files("torchrl_reg.analysis.report").joinpath(name).read_text(encoding="utf-8")
