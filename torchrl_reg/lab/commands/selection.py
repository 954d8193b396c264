"""Arguments that select and score runs, shared by ``table``, ``plot`` and ``results``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from typing import TypeVar

from torchrl_reg.lab.analysis.find import find_runs
from torchrl_reg.lab.analysis.groups import Group, group_runs, shown, without_repetitions, without_settings
from torchrl_reg.lab.analysis.protocols import Gap, gaps
from torchrl_reg.lab.analysis.runs import TRAINING_RETURNS, RunRecord
from torchrl_reg.lab.analysis.scores import EVALUATION
from torchrl_reg.lab.analysis.tables import warnings
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.printable import printable

Item = TypeVar("Item")


def add_selection(parser: argparse.ArgumentParser, folders: str = "+") -> None:
    """Adds folders (``nargs``), filters, column and label, and the score, its scale and the baseline."""
    parser.add_argument(
        "results",
        nargs=folders,
        metavar="FOLDER",
        help="folders that contain runs: results/NAME; or files of rows written by `table --save`",
    )
    parser.add_argument("--env", action="append", metavar="PATTERN", help="only these environments: 'atari/*'")
    parser.add_argument("--method", action="append", metavar="PATTERN", help="only methods with these labels: 'm_dqn*'")
    parser.add_argument("--column", help=f"metric: {EVALUATION} (default), {TRAINING_RETURNS[0]}, action_gap, ...")
    add_ignore(parser)
    parser.add_argument("--by", action="append", metavar="SETTING", help="settings in labels: algo.tau (repeatable)")
    parser.add_argument("--score", default="final", metavar="HOW", help="final (default), best, auc or last<k>: last5")
    parser.add_argument("--normalize", default="auto", metavar="SCALE", help="human, sac, own_sac, none or auto")
    parser.add_argument("--baseline", metavar="METHOD", help="the method to compare the others with")
    parser.add_argument("--unfinished", action="store_true", help="also score unfinished runs")


def add_ignore(parser: argparse.ArgumentParser) -> None:
    """Adds ``--ignore SETTING``."""
    parser.add_argument(
        "--ignore",
        action="append",
        metavar="SETTING",
        help="runs that differ only in this are one method (repeatable)",
    )


def without_ignored(runs: list[RunRecord], ignored: list[str] | None) -> list[RunRecord]:
    """``runs`` without the settings ``ignored``, which are printed to stderr.

    Raises:
        UserError: a name that is not a setting of the runs.
    """
    if not ignored:
        return runs
    left = without_settings(runs, ignored)
    for key in ignored:
        values = dict.fromkeys(shown(run.config[key]) for run in runs if key in run.config)
        warn([f"ignored {key}, which is {_listed(list(values)[:6])}{', ...' * (len(values) > 6)} in these runs"])
    return left


def selected_groups(arguments: argparse.Namespace) -> list[Group]:
    """The methods selected by the arguments.

    Raises:
        UserError: no runs found, none selected, or runs that labels cannot distinguish.
    """
    skipped: list[str] = []
    evaluated = (arguments.column or "").startswith(("return_greedy", "return_sampled"))
    runs = find_runs(arguments.results, skipped=skipped, training=not evaluated)
    warn(f"left out: {sentence.removesuffix('.')}" for sentence in skipped)
    if not runs:
        raise UserError(
            f"results must hold runs (folders with a config.yaml), got none in {_listed(arguments.results)}."
        )
    # Before grouping, so that labels show the differences on the selected environments.
    runs = _matching("env", arguments.env, runs, lambda run: run.env)
    runs, repeated = without_repetitions(without_ignored(runs, arguments.ignore))
    warn(repeated)
    groups = group_runs(runs, arguments.by)
    return _matching("method", arguments.method, groups, lambda group: group.method)


def _matching(name: str, patterns: list[str] | None, items: list[Item], of: Callable[[Item], str]) -> list[Item]:
    if not patterns:
        return items
    # Exact labels match, too: their brackets have another meaning in patterns.
    found = [item for item in items if any(of(item) == each or fnmatch(of(item), each) for each in patterns)]
    if not found:
        there = sorted({of(item) for item in items})
        raise UserError(f"{name} must match one of {_listed(there)}, got {_listed(patterns)}.")
    return found


def warn(sentences: Iterable[str]) -> None:
    """Prints each sentence as a warning to stderr."""
    for sentence in sentences:
        print(f"torchrl-reg: warning: {printable(sentence)}.", file=sys.stderr)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(str, names))


def selected_gaps(arguments: argparse.Namespace) -> list[Gap]:
    """Our scores of the selected runs with published ones; prints warnings to stderr."""
    groups = selected_groups(arguments)
    found = gaps(groups, arguments.column, unfinished=arguments.unfinished)
    # One per group, which may have several published scores.
    scores = {id(each.scores.group): each.scores for each in found}
    warn(warnings(groups, list(scores.values()), averaged=False))
    return found
