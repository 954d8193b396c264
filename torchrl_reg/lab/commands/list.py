"""``torchrl-reg list``: the trained agents in the package."""

from __future__ import annotations

import argparse

from torchrl_reg.lab.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--env`` and ``--commands``."""
    parser.add_argument("--env", metavar="NAME", help="only agents of this environment: cartpole, minatar/breakout")
    parser.add_argument("--commands", action="store_true", help="also print the training command of each agent")


def run(arguments: argparse.Namespace) -> int:
    """Prints a row per agent: greedy return, its 95% interval over episodes, and the final return of each seed."""
    from torchrl_reg.lab.agents.trained import facts_of, trained_agents
    from torchrl_reg.lab.analysis.distributions import t_quantile

    known = sorted({name.partition("/")[2] for name in trained_agents()})
    if arguments.env and arguments.env not in known:
        raise UserError(f"--env must be an environment of a trained agent, got {arguments.env!r}: {', '.join(known)}.")
    print(f"{'agent':32} {'greedy return [95%]':>22} {'episodes':>8} {'frames':>11}  last return of every seed trained")
    for name, file in trained_agents().items():
        if arguments.env and name.partition("/")[2] != arguments.env:
            continue
        facts = facts_of(file)
        row, training = facts["evaluation"], facts["training"]
        mean, spread, count = row["return_greedy_mean"], row["return_greedy_std"], row["episodes"]
        # The deviation is the population's; equal returns, such as at a cap, have no interval.
        half = t_quantile(0.975, count - 1) * spread / (count - 1) ** 0.5 if count > 1 else 0.0
        score = f"{mean:.4g} [{mean - half:.4g}, {mean + half:.4g}]" if half else f"{mean:.4g}"
        scores = ", ".join(f"{final:.4g}" for final in training["scores"])
        print(f"{name:32} {score:>22} {row['episodes']:>8} {training['frames']:>11,}  {scores}")
        if arguments.commands:
            print(f"    {training['command']}  # commit {training['commit']}")
    return 0
