"""``torchrl-reg check my_module:MyLoss``: compares a loss with its target, and names the known error it has."""

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
    """Adds ``LOSS``, its claims, and ``--json``."""
    what = "my_module:MyLoss, a LossModule class, or my_module:make, a function of the network that returns the loss"
    parser.add_argument("loss", metavar="LOSS", help=what)
    parser.add_argument("--method", metavar="METHOD", help=f"its method: {', '.join(METHODS)} (default: guessed)")
    parser.add_argument(
        "--head", metavar="HEAD", help="expected, categorical, quantiles, implicit or actor (default: guessed)"
    )
    for name, meaning in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=float, metavar="X", help=f"{meaning} (default: read from the loss)")
    parser.add_argument("--double", action="store_true", default=None, help="the loss uses Double Q-learning")
    parser.add_argument(
        "--prior", type=float, nargs=3, metavar="P", help="prior probabilities of the three actions, for sql"
    )
    parser.add_argument(
        "--n-steps",
        type=int,
        default=1,
        metavar="N",
        help="number of steps: the loss discounts by gamma^N (default: 1)",
    )
    parser.add_argument("--lmbda", type=float, default=0.7, metavar="X", help="trace parameter (default: %(default)s)")
    parser.add_argument("--action-space", default="categorical", metavar="SPACE", help="categorical (default), one-hot")
    parser.add_argument("--masks", action="store_true", help="the loss supports action masks and padding")
    parser.add_argument("--weights", action="store_true", help="the loss supports priority_weight")
    parser.add_argument("--compile", action="store_true", help="also try torch.compile, which takes seconds")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report; returns 1 if a check failed, else 0.

    Raises:
        CheckError: the loss cannot be imported, built or read, or its method cannot be guessed.
    """
    report = check_loss(
        imported(arguments.loss),
        method=arguments.method,
        head=arguments.head,
        tau=arguments.tau,
        alpha=arguments.alpha,
        clip_min=arguments.clip_min,
        gamma=arguments.gamma,
        double=arguments.double,
        prior=arguments.prior,
        n_steps=arguments.n_steps,
        lmbda=arguments.lmbda,
        action_space=arguments.action_space,
        masks=arguments.masks,
        weights=arguments.weights,
        compile=arguments.compile,
    )
    print(json.dumps(report.as_dict(), indent=2) if arguments.json else report)
    return int(not report.passed)
