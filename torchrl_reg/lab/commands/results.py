"""``torchrl-reg results``: the tables of a Markdown page, from rows written by ``torchrl-reg table --save``."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_reg.lab.analysis.pages import Tables, write_page
from torchrl_reg.lab.analysis.protocols import gaps, protocol_table
from torchrl_reg.lab.analysis.scores import EVALUATION, group_scores, scale_of
from torchrl_reg.lab.analysis.tables import aggregate_table, environment_table, markdown
from torchrl_reg.lab.commands.selection import add_selection, selected_groups


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``torchrl-reg results``."""
    add_selection(parser)
    text = "the page; tables between <!-- table: runs --> or <!-- table: published --> and <!-- end --> are regenerated"
    parser.add_argument("--page", type=Path, default=Path("results.md"), metavar="FILE", help=f"{text} (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    groups = selected_groups(arguments)
    column, baseline = arguments.column or EVALUATION, arguments.baseline

    def runs(_: str) -> str:
        scores = group_scores(groups, arguments.score, column, unfinished=arguments.unfinished)
        scale = scale_of(list(dict.fromkeys(group.env for group in groups)), arguments.normalize)
        first = environment_table(scores, scale=scale, baseline=baseline, title=f"{arguments.score} of {column}")
        second = aggregate_table(scores, scale=scale, baseline=baseline)
        return markdown([first] if second is None else [first, second])

    def published(_: str) -> str:
        return markdown([protocol_table(gaps(groups, arguments.column, unfinished=arguments.unfinished))])

    tables: Tables = {"runs": runs, "published": published}
    print(write_page(arguments.page, tables, default="runs"))
    return 0
