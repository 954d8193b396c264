"""``torchrl-reg bench``: says where the benchmarks went."""

from __future__ import annotations

import argparse

from torchrl_reg.lab.analysis.documents import AnalysisError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes the old command's words, so that it ends in this sentence."""
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Refuses.

    Raises:
        AnalysisError: always.
    """
    topic = next((word for word in args.words if word.isalpha()), "cartpole")
    raise AnalysisError(f"bench must be python -m tests.benchmarks.{topic} in a checkout, got torchrl-reg bench.")
