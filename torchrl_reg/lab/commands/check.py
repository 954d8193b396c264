"""``torchrl-reg check my_module:MyLoss``: holds a loss to the target it claims, and names the known error it has."""

from __future__ import annotations

import argparse
import json

from torchrl_reg.testing import METHODS, check_loss
from torchrl_reg.testing.loss import imported

_NUMBERS = {
    "tau": "temperature, in reward units",
    "alpha": "weight of the bonus",
    "clip-min": "lower clip of tau ln pi, in reward units",
    "gamma": "discount",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``LOSS``, what it claims, and ``--json``."""
    what = "my_module:MyLoss, a LossModule class, or my_module:make, a function of the network that returns the loss"
    parser.add_argument("loss", metavar="LOSS", help=what)
    parser.add_argument("--method", metavar="METHOD", help=f"what it claims to be: {', '.join(METHODS)} (guessed)")
    parser.add_argument("--head", metavar="HEAD", help="expected, categorical, quantiles, implicit or actor (guessed)")
    for name, meaning in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{meaning} (read from the loss)")
    parser.add_argument("--double", action="store_true", default=None, help="it claims Double Q-learning")
    parser.add_argument("--prior", type=float, nargs=3, metavar="P", help="probabilities of the three actions, of sql")
    parser.add_argument("--n-steps", type=int, default=1, metavar="N", help="it discounts by gamma^N (default: 1)")
    parser.add_argument("--lmbda", type=float, default=0.7, metavar="X", help="trace parameter (default: %(default)s)")
    parser.add_argument("--action-space", default="categorical", metavar="SPACE", help="categorical (default), one-hot")
    parser.add_argument("--masks", action="store_true", help="it claims to honour action masks and padding")
    parser.add_argument("--weights", action="store_true", help="it claims to honour priority_weight")
    parser.add_argument("--compile", action="store_true", help="try torch.compile, too, which takes seconds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 1 if a check failed, else 0.

    Raises:
        CheckError: the loss cannot be found, built or read, or it is not known what it claims.
    """
    kept = ("loss", "json", "command", "run", "words")
    claims = {name: value for name, value in vars(arguments).items() if name not in kept}
    report = check_loss(imported(arguments.loss), **claims)
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report)
    return int(not report.passed)
