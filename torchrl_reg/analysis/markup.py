"""Tables as markdown, LaTeX (booktabs) and tidy CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence

from torchrl_reg.analysis.statistics import Estimate
from torchrl_reg.analysis.tables import Row, Table

_LATEX = {"\\": r"\textbackslash{}", **{c: rf"\{c}" for c in "&%$#_{}"}, "~": r"\textasciitilde{}", ">": "$>$"}


def markdown(tables: Sequence[Table]) -> str:
    """GitHub's markdown: numbers as ``mean [low, high]``."""
    blocks = []
    for table in tables:
        header, *rows = _cells(table)
        lines = [header, ["---"] * len(header), *rows]
        text = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        blocks.append("\n\n".join([f"**{table.title}**", text, *table.notes]))
    return "\n\n".join(blocks) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """LaTeX tabulars for the booktabs package."""
    blocks = []
    for table in tables:
        header, *rows = ([_escaped(cell) for cell in line] for line in _cells(table))
        body = [" & ".join(line) + r" \\" for line in rows]
        words = sum(1 for name in ("env", "method") if name in header)
        blocks.append(
            "\n".join(
                [
                    *(f"% {note}" for note in (table.title, *table.notes)),
                    rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(header) - words)}}}",
                    r"\toprule",
                    " & ".join(header) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def tidy_csv(tables: Sequence[Table]) -> str:
    """One row a number (``env, method, runs, frames, commits, statistic, value, low, high``), unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["env", "method", "runs", "frames", "commits", "statistic", "value", "low", "high"])
    for table in tables:
        for row in table.rows:
            for name, number in row.numbers.items():
                ends = (number.value, number.low, number.high) if isinstance(number, Estimate) else (number, "", "")
                writer.writerow([row.env, row.method, row.runs, row.frames, row.commits, name, *ends])
    return out.getvalue()


#: Formats of ``torchrl-reg table``.
FORMATS: dict[str, Callable[[Sequence[Table]], str]] = {"markdown": markdown, "latex": latex, "csv": tidy_csv}


def number_text(number: Estimate | float | None) -> str:
    """``value [low, high]``, all with as many decimals as the largest needs for about three digits.

    >>> number_text(Estimate(0.5, -0.123, 0.9)), number_text(Estimate(499.6, 480.2, 500.0)), number_text(None)
    ('0.50 [-0.12, 0.90]', '500 [480, 500]', '')
    """
    if number is None:
        return ""
    ends = (number.value, number.low, number.high) if isinstance(number, Estimate) else (number,)
    largest = max(map(abs, ends))
    decimals = 0 if largest >= 99.95 else 1 if largest >= 9.995 else 2
    value, *interval = (f"{round(end, decimals) + 0.0:.{decimals}f}" for end in ends)  # + 0: no -0.00
    return f"{value} [{', '.join(interval)}]" if interval else value


def _cells(table: Table) -> list[list[str]]:
    """Header and lines; columns that are the same empty text everywhere are left out."""
    named: dict[str, Callable[[Row], str]] = {
        "env": lambda row: row.env,
        "method": lambda row: row.method,
        "seeds" if any(row.commits for row in table.rows) else "runs": lambda row: str(row.runs),
        "frames": lambda row: row.frames,
    }
    numbers = {name: lambda row, name=name: number_text(row.numbers.get(name)) for name in table.columns}
    columns = {**named, **numbers, "commits": lambda row: row.commits}
    if all(row.env == "all" for row in table.rows):
        del columns["env"]
    cells = {name: [text(row) for row in table.rows] for name, text in columns.items()}
    cells = {name: column for name, column in cells.items() if any(column)}
    return [list(cells), *(list(line) for line in zip(*cells.values(), strict=True))]


def _escaped(text: str) -> str:
    return re.sub(r"[\\&%$#_{}~>]", lambda found: _LATEX[found[0]], text)
