"""``torchrl-reg launch`` and ``torchrl-reg status``: the scripts of ``slurm/``, from any folder."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys

from torchrl_reg.analysis.errors import AnalysisError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None here: all words go to the script."""
    parser.epilog = (
        "What it takes: torchrl-reg launch sweep=NAME cluster=NAME [name=value ...]; torchrl-reg status NAME."
    )


def run(args: argparse.Namespace) -> int:
    """Runs the script with the words after the command.

    Raises:
        AnalysisError: an installation without ``slurm/``, which comes with the source.
    """
    if importlib.util.find_spec("slurm") is None or importlib.util.find_spec("slurm.launch") is None:
        raise AnalysisError(
            f"{args.command} needs the recipes and sweeps, which come with the source, got an installation without "
            "them: clone the repository and pip install -e '.[recipes,slurm,report]' there."
        )
    sys.argv = [f"torchrl-reg {args.command}", *args.words]
    importlib.import_module(f"slurm.{args.command}").main()
    return 0
