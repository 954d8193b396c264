"""``torchrl-reg table``: scores of all methods with intervals, as Markdown, LaTeX or CSV."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_reg.lab.analysis.groups import Group
from torchrl_reg.lab.analysis.protocols import protocol_table
from torchrl_reg.lab.analysis.published import published_names
from torchrl_reg.lab.analysis.rows import row_of, write_rows
from torchrl_reg.lab.analysis.runs import TRAINING_RETURNS
from torchrl_reg.lab.analysis.scores import EVALUATION, Scoreboard, group_scores, scale_of
from torchrl_reg.lab.analysis.tables import FORMATS, Table, aggregate_table, environment_table, warnings
from torchrl_reg.lab.commands.selection import add_selection, selected_gaps, selected_groups, warn
from torchrl_reg.lab.errors import UserError

#: ``--published`` without a paper: the published scores with a protocol.
_PROTOCOLS = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``torchrl-reg table``."""
    add_selection(parser, folders="*")
    parser.set_defaults(refuse=parser.error)
    parser.add_argument("--format", choices=tuple(FORMATS), default="markdown", help="(default: %(default)s)")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="ROWS.jsonl",
        help="write a row per finished run to this file, instead of a table",
    )
    parser.add_argument(
        "--published",
        nargs="?",
        const=_PROTOCOLS,
        metavar="PAPER",
        help="our scores with published ones of the same protocol, or the differences of the protocols; or all numbers "
        "of mirl or ments (Atari) or sac (MuJoCo)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints the tables, and warnings to stderr."""
    paper = arguments.published
    if paper and paper not in published_names() and Path(paper).is_dir():
        # argparse reads a folder after --published as its value.
        arguments.published, arguments.results = _PROTOCOLS, [paper, *arguments.results]
    if not arguments.results:
        arguments.refuse("the following arguments are required: FOLDER")
    if arguments.save is not None:
        _save(arguments)
        return 0
    if arguments.published == _PROTOCOLS:
        tables = [_published_table(arguments)]
    else:
        arguments.column = arguments.column or EVALUATION
        tables = _tables(arguments, selected_groups(arguments))
    print(FORMATS[arguments.format](tables), end="")
    return 0


def _save(arguments: argparse.Namespace) -> None:
    """Writes the rows of the finished runs and prints the path of the file."""
    if arguments.save.suffix != ".jsonl":
        raise UserError(f"save must name a file that ends in .jsonl, got {arguments.save}.")
    arguments.column = TRAINING_RETURNS[0]  # so that training rows are read
    runs = [run for group in selected_groups(arguments) for run in group.runs]
    unfinished = [run for run in runs if run.done is None]
    warn(f"left out: {run.path} is not finished" for run in unfinished)
    write_rows(arguments.save, [row_of(run) for run in runs if run.done is not None])
    print(arguments.save)


def _tables(arguments: argparse.Namespace, groups: list[Group]) -> list[Table]:
    scores = group_scores(groups, arguments.score, arguments.column, unfinished=arguments.unfinished)
    envs = Scoreboard(scores).envs
    scale = scale_of(envs, arguments.normalize)
    title = f"{arguments.score} of {arguments.column}"
    baseline, published = arguments.baseline, arguments.published
    first = environment_table(scores, scale=scale, baseline=baseline, published=published, title=title)
    second = aggregate_table(scores, scale=scale, baseline=baseline)
    averaged = second is not None or (baseline is not None and len(envs) > 1)
    warn(warnings(groups, scores, scale=scale, baseline=baseline, averaged=averaged))
    return [first] if second is None else [first, second]


def _published_table(arguments: argparse.Namespace) -> Table:
    """The table of our final, unscaled scores and published ones."""
    for name, default in (("score", "final"), ("normalize", "auto"), ("baseline", None)):
        if (value := getattr(arguments, name)) != default:
            raise UserError(f"{name} must be left out with --published alone, got {value!r}.")
    return protocol_table(selected_gaps(arguments))
