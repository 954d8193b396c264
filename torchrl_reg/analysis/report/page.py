"""The page: templates, style and script of this folder filled with the sections."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from torchrl_reg.analysis.charts import DARK, LIGHT, Chart
from torchrl_reg.analysis.groups import short_name
from torchrl_reg.analysis.numbers import amount, hours, number, score_text
from torchrl_reg.analysis.report.svg import coordinate, drawing


def filled(template: str, **context: Any) -> Markup:
    """``template`` with ``context`` in it; text is escaped, what is HTML already is marked as such."""
    return Markup(_environment().get_template(template).render(context))


def series_class(series: int) -> str:
    """Colour and, from the second round of colours on, dashes of a series."""
    dashes = f" d{min(series // len(LIGHT), 3)}" if series >= len(LIGHT) else ""
    return f"s{series % len(LIGHT)}{dashes}"


def svg(chart: Chart) -> Markup:
    """``chart`` as a figure of the page."""
    return filled("chart.html", chart=chart, **drawing(chart))


@cache
def _environment() -> Any:
    loader = jinja2.PackageLoader("torchrl_reg.analysis.report", "")
    found = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    found.globals |= {"light": LIGHT, "dark": DARK}
    filters = (series_class, svg, coordinate, amount, hours, number, score_text, short_name)
    found.filters |= {filter.__name__: filter for filter in filters}
    found.filters["yaml"] = partial(yaml.safe_dump, sort_keys=False, allow_unicode=True)
    return found
