"""How often the searches of ``recipes/ments_trees.py`` choose a wrong action, as a figure and a Markdown table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from studies.synthetic_trees import LABELS
from torchrl_reg.lab.analysis.curves import LIGHT, Line, chart
from torchrl_reg.lab.analysis.plots import draw
from torchrl_reg.lab.analysis.runs import metrics_rows
from torchrl_reg.lab.analysis.statistics import Array

#: A bound is fitted to probabilities that at least this many failures show, from this many simulations on.
FAILURES, SIMULATIONS = 5, 20


class Law(NamedTuple):
    """A bound of the failure probability P after t simulations, with constants that were fitted.

    Args:
        rate: ``1 / c`` of ``C t exp(-t / (c (ln t)^3))``, or ``rho`` of ``C t^-rho``.
        log_scale: ``ln C``.
        exponential: which of the two.
        excess: the bound over P, geometric mean.
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

    The theorems leave the constants open; these are fitted: of all bounds that no measured probability exceeds, the one
    with the smallest mean of ``ln(bound / P)`` over the recorded times. How far it stays above shows whether the
    probabilities have that form. None where fewer than four can be told from 0.

    Source: Xiao et al. 2019 (MENTS), theorem 5; Kocsis and Szepesvari 2006 (UCT), theorem 7.

    Args:
        time: simulations ``[N]``.
        wrong: failures ``[N]``.
        searches: repetitions.
        exponential: MENTS's law.
    """
    keep = (wrong >= FAILURES) & (time >= SIMULATIONS)
    if keep.sum() < 4:
        return None
    against, known = _terms(time[keep], exponential)
    y = np.log(wrong[keep] / searches) - known
    # The mean is convex and piecewise linear in the rate, with corners where the bound touches two probabilities.
    over, under = np.subtract.outer(y, y), np.subtract.outer(against, against)
    rates = np.append((-over[under > 0] / under[under > 0]).clip(0), 0.0)
    scales = (y + rates[:, None] * against).max(1)
    means = scales - rates * against.mean() - y.mean()
    best = means.argmin()
    return Law(float(rates[best]), float(scales[best]), exponential, float(np.exp(means[best])))


def draw_failures(folder: Path, path: Path) -> Path:
    """Draws failure probabilities with 95% intervals, and dashed the fitted bound of each method's theorem.

    Raises:
        ValueError: the folder holds no run of the recipe with its failures.
    """
    charts = []
    rows = _rows(folder)
    for problem in dict.fromkeys(row["problem"] for row in rows):
        lines = []
        for series, row in enumerate(row for row in rows if row["problem"] == problem):
            time, wrong = np.array(row["simulations"], float), np.array(row["wrong"], float)
            least = 0.5 / row["searches"]  # the lower edge: no failure was seen
            p, label, law = np.maximum(wrong / row["searches"], least), LABELS[row["method"]], _law(row)
            margin = 1.96 * np.sqrt(p * (1 - p) / row["searches"])
            lines.append(Line(label, series, time, p, np.maximum(p - margin, least), p + margin))
            if law is not None:
                form = "C t exp(-t / c (ln t)^3)" if law.exponential else "C t^-rho"
                at = time[time >= SIMULATIONS]
                lines.append(Line(f"bound {form}, fitted", series + len(LIGHT), at, law(at)))
        span = (0.5 / rows[0]["searches"], 1.0)
        charts.append(chart(problem, lines, x_label="simulations t", log_x=True, may_log=True, span=span))
    return draw(charts, path, columns=2, y_label="probability of a wrong root action")


def failures_table(folder: Path) -> str:
    """Markdown table: failure probabilities, and bounds of both forms, fitted to each method.

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
    """What the rate multiplies, and what is known of ``ln P``."""
    log = np.log(time)
    return (time / log**3, log) if exponential else (log, np.zeros_like(log))


def _law(row: dict, exponential: bool | None = None) -> Law | None:
    """The law of the row's own theorem, or the one asked for."""
    own = row["method"] not in ("uct", "puct") if exponential is None else exponential
    time, wrong = np.array(row["simulations"], float), np.array(row["wrong"], float)
    return fitted(time, wrong, row["searches"], exponential=own)


def _rows(folder: Path) -> list[dict]:
    rows = [row for row in metrics_rows(folder, '"failures"') if row["event"] == "failures"]
    if not rows:
        raise ValueError(f"{folder} must hold the metrics.jsonl of a run of ments_trees with its failures, got none.")
    return rows
