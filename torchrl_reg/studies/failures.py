"""How often the searches of ``recipes/ments_trees.py`` choose a wrong action, as a figure and a Markdown table."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from torchrl_reg.analysis.charts import LIGHT, Line, chart
from torchrl_reg.analysis.plots import draw
from torchrl_reg.analysis.record import metrics_rows
from torchrl_reg.analysis.statistics import Array
from torchrl_reg.studies.synthetic_trees import LABELS

#: A law is fitted to probabilities that at least this many failures show, from this many simulations on.
FAILURES, SIMULATIONS = 5, 20


class Law(NamedTuple):
    """A law of the failure probability P after t simulations, with the constants that fit best.

    Args:
        rate: ``1 / c`` of ``C t exp(-t / (c (ln t)^3))``, or ``rho`` of ``C t^-rho``.
        log_scale: ``ln C``.
        exponential: which of the two.
        unexplained: share of the variance of ``ln P`` that the law leaves.
    """

    rate: float
    log_scale: float
    exponential: bool
    unexplained: float

    def __call__(self, time: Array) -> Array:
        """P at ``time``."""
        against, known = _terms(time, self.exponential)
        return np.exp(self.log_scale + known - self.rate * against)


def fitted(time: Array, wrong: Array, searches: int, *, exponential: bool) -> Law | None:
    r"""The law of MENTS's theorem, :math:`P \le C t \exp(-t / (c (\ln t)^3))`, or UCT's, :math:`P \le C t^{-\rho}`.

    Least squares of ``ln P``, weighted by the number of failures (its variance is about one over that). Both theorems
    leave the constants open: fitted, they show which form the measured probabilities have, and prove nothing. None
    where fewer than four probabilities can be told from 0.

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
    y, weight = np.log(wrong[keep] / searches) - known, np.sqrt(wrong[keep])
    terms = np.stack([np.ones_like(against), -against], -1)
    (log_scale, rate), *_ = np.linalg.lstsq(terms * weight[:, None], y * weight, rcond=None)
    left, log_p = y - log_scale + rate * against, y + known
    spread = log_p - np.average(log_p, weights=weight**2)
    unexplained = float((weight**2 * left**2).sum() / (weight**2 * spread**2).sum())
    return Law(float(rate), float(log_scale), exponential, unexplained)


def draw_failures(folder: Path, path: Path) -> Path:
    """Draws failure probabilities with 95% intervals, and dashed the law of each method's theorem, fitted.

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
                form = "t exp(-t / c (ln t)^3)" if law.exponential else "t^-rho"
                at = time[time >= SIMULATIONS]
                lines.append(Line(f"{form}, fitted to {label}", series + len(LIGHT), at, law(at)))
        span = (0.5 / rows[0]["searches"], 1.0)
        charts.append(chart(problem, lines, x_label="simulations t", log_x=True, may_log=True, span=span))
    return draw(charts, path, columns=2, y_label="probability of a wrong root action")


def failures_table(folder: Path) -> str:
    """Markdown table: failure probabilities, and both laws fitted to each method.

    Raises:
        ValueError: as :func:`draw_failures`.
    """
    rows = _rows(folder)
    last = rows[0]["simulations"][-1]
    shown = [rows[0]["simulations"][int(np.searchsorted(rows[0]["simulations"], last / n))] for n in (10, 3, 1)]
    heads = ["problem", "method", *(f"P({n})" for n in shown), "t exp(-t / c (ln t)^3), fitted: c (unexplained)"]
    lines = [f"| {' | '.join(heads)} | t^-rho, fitted: rho (unexplained) |", "|---" * 7 + "|"]
    for row in rows:
        wrong = dict(zip(row["simulations"], row["wrong"], strict=True))
        cells = [row["problem"], LABELS[row["method"]], *(f"{wrong[n] / row['searches']:.2g}" for n in shown)]
        for exponential in (True, False):
            law = _law(row, exponential)
            constant = None if law is None else (1 / law.rate if exponential else law.rate)
            cells.append("-" if law is None else f"{constant:.3g} ({law.unexplained:.1%})")
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
