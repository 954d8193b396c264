"""``torchrl-reg report FOLDER [-o FILE]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torchrl_reg.analysis.errors import AnalysisError
from torchrl_reg.analysis.report.page import report_html
from torchrl_reg.analysis.report.sweep import read_sweep


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``FOLDER``, ``--out`` and ``--column``."""
    parser.description = "Writes one self-contained HTML file about the runs of a sweep, finished or not."
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="results/NAME, or any folder of runs")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: FOLDER/report.html")
    parser.add_argument("--column", metavar="NAME", help="evaluation to score by (default return_greedy_mean)")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path; 1 if that cannot be done."""
    out = args.out or args.folder / "report.html"
    try:
        html = report_html(read_sweep(args.folder, column=args.column))
        out.write_text(html, encoding="utf-8")
    except AnalysisError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"--out must be a file that can be written, got {out}: {error.strerror}.", file=sys.stderr)
        return 1
    print(out)
    return 0
