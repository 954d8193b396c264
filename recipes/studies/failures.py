"""Failure probabilities of the searches of ``recipes/ments_trees.py``, as a figure and a Markdown table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from studies.synthetic_trees import LABELS
from torchrl_reg.lab.analysis.curves import LIGHT, Line, chart
from torchrl_reg.lab.analysis.plots import draw
from torchrl_reg.lab.analysis.runs import metrics_rows
from torchrl_reg.lab.analysis.statistics import Array

#: Bounds are fitted to probabilities from at least this many failures, at this many simulations or more.
FAILURES, SIMULATIONS = 5, 20


class Law(NamedTuple):
    """A bound of the failure probability P after t simulations, with fitted constants.

    Args:
        rate: ``1 / c`` of ``C t exp(-t / (c (ln t)^3))``, or ``rho`` of ``C t^-rho``.
        log_scale: ``ln C``.
        exponential: True for the first form.
        excess: geometric mean of the bound over P.
    """

    rate: float
    log_scale: float
    exponential: bool
    excess: float

    def __call__(self, time: Array) -> Array:
        """The bound at ``time``."""
        against, known = _terms(time, self.exponential)
        return np.exp(self.log_scale + known - self.rate * against)


def fitted(time: Array, wrong: Array, searches: int, *, exponential: bool) -> Law | None:
    r"""The tightest bound of the form :math:`C t \exp(-t / (c (\ln t)^3))` of MENTS, or :math:`C t^{-\rho}` of UCT.

    The theorems leave the constants open. Of all bounds that no measured probability exceeds, this is the one with the
    smallest mean of ``ln(bound / P)`` over the recorded times: a large mean shows that the probabilities have another
    form. None if fewer than four probabilities have enough failures.

    Source: Xiao et al. 2019 (MENTS), theorem 5; Kocsis and Szepesvari 2006 (UCT), theorem 7.

    Args:
        time: simulations ``[N]``.
        wrong: failures ``[N]``.
        searches: number of repetitions.
        exponential: True for the bound of MENTS.
    """
    keep = (wrong >= FAILURES) & (time >= SIMULATIONS)
    if keep.sum() < 4:
        return None
    against, known = _terms(time[keep], exponential)
    y = np.log(wrong[keep] / searches) - known
    # The mean is convex and piecewise linear in the rate; at its corners the bound touches two probabilities.
    over, under = np.subtract.outer(y, y), np.subtract.outer(against, against)
    rates = np.append((-over[under > 0] / under[under > 0]).clip(0), 0.0)
    scales = (y + rates[:, None] * against).max(1)
    means = scales - rates * against.mean() - y.mean()
    best = means.argmin()
    return Law(float(rates[best]), float(scales[best]), exponential, float(np.exp(means[best])))


def draw_failures(folder: Path, path: Path) -> Path:
    """Draws failure probabilities with 95% intervals, and the fitted bounds of the methods' theorems.

    Raises:
        ValueError: the folder holds no run of the recipe with its failures.
    """
    charts = []
    rows = _rows(folder)
    for problem in dict.fromkeys(row["problem"] for row in rows):
        lines = []
        for series, row in enumerate(row for row in rows if row["problem"] == problem):
            time, wrong = np.array(row["simulations"], float), np.array(row["wrong"], float)
            low = 0.5 / row["searches"]  # the lower edge, for no failures
            p, label, law = np.maximum(wrong / row["searches"], low), LABELS[row["method"]], _law(row)
            margin = 1.96 * np.sqrt(p * (1 - p) / row["searches"])
            lines.append(Line(label, series, time, p, np.maximum(p - margin, low), p + margin))
            if law is not None:
                form = "C t exp(-t / c (ln t)^3)" if law.exponential else "C t^-rho"
                at = time[time >= SIMULATIONS]
                lines.append(Line(f"bound {form}, fitted", series + len(LIGHT), at, law(at)))
        span = (0.5 / rows[0]["searches"], 1.0)
        charts.append(chart(problem, lines, x_label="simulations t", log_x=True, may_log=True, span=span))
    return draw(charts, path, columns=2, y_label="probability of a wrong root action")


def failures_table(folder: Path) -> str:
    """Markdown table of failure probabilities and fitted bounds of both forms.

    Raises:
        ValueError: as :func:`draw_failures`.
    """
    rows = _rows(folder)
    last = rows[0]["simulations"][-1]
    shown = [rows[0]["simulations"][int(np.searchsorted(rows[0]["simulations"], last / n))] for n in (10, 3, 1)]
    heads = ["problem", "method", *(f"P({n})" for n in shown), "C t exp(-t / c (ln t)^3), fitted: c (bound / P)"]
    lines = [f"| {' | '.join(heads)} | C t^-rho, fitted: rho (bound / P) |", "|---" * 7 + "|"]
    for row in rows:
        wrong = dict(zip(row["simulations"], row["wrong"], strict=True))
        cells = [row["problem"], LABELS[row["method"]], *(f"{wrong[n] / row['searches']:.2g}" for n in shown)]
        for exponential in (True, False):
            law = _law(row, exponential)
            if law is None or law.rate == 0:
                cells.append("-")
            else:
                cells.append(f"{1 / law.rate if exponential else law.rate:.3g} ({law.excess:.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _terms(time: Array, exponential: bool) -> tuple[Array, Array]:
    """The factor of the rate in ``ln P``, and the term without free constants."""
    log = np.log(time)
    return (time / log**3, log) if exponential else (log, np.zeros_like(log))


def _law(row: dict, exponential: bool | None = None) -> Law | None:
    """The bound of the form ``exponential``, by default that of the method's theorem."""
    if exponential is None:
        exponential = row["method"] not in ("uct", "puct")
    time, wrong = np.array(row["simulations"], float), np.array(row["wrong"], float)
    return fitted(time, wrong, row["searches"], exponential=exponential)


def _rows(folder: Path) -> list[dict]:
    rows = [row for row in metrics_rows(folder, '"failures"') if row["event"] == "failures"]
    if not rows:
        raise ValueError(f"{folder} must hold the metrics.jsonl of a run of ments_trees with its failures, got none.")
    return rows
