"""``torchrl-reg report``: a sweep as one self-contained HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_reg.lab.analysis.report import read_sweep, report_html
from torchrl_reg.lab.commands.selection import add_ignore, warn
from torchrl_reg.lab.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``FOLDER``, ``--out``, ``--ignore`` and ``--column``."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/NAME, or any folder of runs")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: FOLDER/report.html")
    add_ignore(parser)
    parser.add_argument("--column", metavar="NAME", help="evaluation to score by (default return_greedy_mean)")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path.

    Raises:
        UserError: no such folder, no runs in it, runs that labels cannot distinguish, or a file that cannot be written.
    """
    out = args.out or args.folder / "report.html"
    sweep = read_sweep(args.folder, column=args.column, ignore=args.ignore or ())
    warn(f"ignored {key}" for key in args.ignore or ())
    warn(f"left out: {sentence.removesuffix('.')}" for sentence in sweep.skipped)
    html = report_html(sweep)
    try:
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out must be a file that can be written, got {out}: {error.strerror}.") from None
    print(out)
    return 0
