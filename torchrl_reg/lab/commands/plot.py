"""``torchrl-reg plot``: learning curves, aggregates, improvement bars and performance profiles, as PNG or SVG."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_reg.lab.analysis import plots
from torchrl_reg.lab.analysis.scores import EVALUATION, group_scores, scale_of
from torchrl_reg.lab.analysis.tables import curve_warnings, unscored_note, warnings
from torchrl_reg.lab.commands.selection import add_selection, selected_gaps, selected_groups, warn
from torchrl_reg.lab.errors import UserError

KINDS = {
    "curves": "learning curves, a panel per environment",
    "aggregate": "normalized learning curves over all environments",
    "improvement": "of --of METHOD over --baseline METHOD, a bar per environment",
    "profile": "share of runs above each normalized score",
    "published": "our scores and published ones of the same protocol",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``torchrl-reg plot``."""
    kinds = "; ".join(f"{name}: {text}" for name, text in KINDS.items())
    parser.add_argument("kind", choices=tuple(KINDS), metavar="KIND", help=kinds)
    add_selection(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="PNG, SVG or PDF (default: KIND.png)")
    parser.add_argument("--center", default="mean", metavar="HOW", help="centre of curves: mean (default) or iqm")
    parser.add_argument("--aggregate", default="IQM", metavar="HOW", help="IQM (default), median, mean, optimality gap")
    parser.add_argument("--of", metavar="METHOD", help="the method whose improvement over --baseline is drawn")


def run(arguments: argparse.Namespace) -> int:
    """Draws the figure and prints its path."""
    out = plots.checked_path(arguments.out or Path(f"{arguments.kind}.png"))
    if arguments.kind == "published":
        print(plots.draw_published(selected_gaps(arguments), out))
        return 0
    groups = selected_groups(arguments)
    arguments.column = arguments.column or EVALUATION
    scale = scale_of(list(dict.fromkeys(group.env for group in groups)), arguments.normalize)
    column, kind = arguments.column, arguments.kind
    if kind in ("curves", "aggregate"):
        warn(curve_warnings(groups, column, scale=scale, averaged=kind == "aggregate"))
        if kind == "curves":
            path = plots.draw_learning_curves(groups, out, column=column, center=arguments.center)
        else:
            path = plots.draw_aggregate_curves(groups, out, scale=scale, column=column, aggregate=arguments.aggregate)
    else:
        scores = group_scores(groups, arguments.score, column, unfinished=arguments.unfinished)
        warn(warnings(groups, scores, scale=scale, averaged=kind == "profile"))
        if kind == "profile":
            path = plots.draw_profiles(scores, out, scale=scale)
        else:
            warn(unscored_note((group.env for group in groups), scale))
            for name in ("of", "baseline"):
                if getattr(arguments, name) is None:
                    raise UserError(f"{name} must name a method to draw improvement, got none.")
            path = plots.draw_improvement(scores, out, method=arguments.of, baseline=arguments.baseline, scale=scale)
    print(path)
    return 0
