"""``torchrl-reg table``: scores of every method with intervals, as markdown, LaTeX or CSV."""

from __future__ import annotations

import argparse

from torchrl_reg.analysis.notes import warnings
from torchrl_reg.analysis.scores import Scoreboard, group_scores, scale_of
from torchrl_reg.analysis.tables import FORMATS, aggregate_table, environment_table
from torchrl_reg.commands.selection import add_selection, selected_groups, warn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``torchrl-reg table``."""
    add_selection(parser)
    parser.add_argument("--format", choices=tuple(FORMATS), default="markdown", help="(default: %(default)s)")
    parser.add_argument("--published", metavar="PAPER", help="mirl or ments (Atari) or sac (MuJoCo), beside ours")


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables; warnings go to stderr."""
    groups = selected_groups(arguments)
    scores = group_scores(groups, arguments.score, arguments.column, unfinished=arguments.unfinished)
    envs = Scoreboard(scores).envs
    scale = scale_of(envs, arguments.normalize)
    title = f"{arguments.score} of {arguments.column}"
    tables = [
        environment_table(scores, scale=scale, baseline=arguments.baseline, published=arguments.published, title=title),
        aggregate_table(scores, scale=scale, baseline=arguments.baseline),
    ]
    averaged = tables[1] is not None or (arguments.baseline is not None and len(envs) > 1)
    warn(warnings(groups, scores, scale=scale, baseline=arguments.baseline, averaged=averaged))
    print(FORMATS[arguments.format]([table for table in tables if table is not None]), end="")
    return 0
