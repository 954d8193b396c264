"""``torchrl-reg bench``: our speed relative to other implementations, measured side by side on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json

#: Topic -> where its tables are made, how many times ``--frames`` a run of them takes (None: it has none), and what.
TOPICS = {
    "cartpole": (
        "cartpole.cartpole_tables",
        1,
        "steps/s from end to end: ours, a hand-written script, CleanRL's loop, TorchRL's parts, SB3",
    ),
    "compile": (
        "cartpole.compiled_tables",
        2,
        "the same with compiled updates: ours, a hand-written script, CleanRL's loop",
    ),
    "seeds": ("cartpole.seeds_tables", 1, "steps/s of eight seeds trained together: ours, one seed by itself"),
    "minatar": ("images.minatar_tables", 0.5, "steps/s on MinAtar Breakout: ours, a hand-written script"),
    "atari": ("images.atari_tables", None, "steps/s on Atari Breakout: ours, CleanRL's loop"),
    "update": ("losses.update_tables", None, "a loss forward: ours, hand-written PyTorch, TorchRL's"),
    "control": (
        "control.control_tables",
        None,
        "continuous policies: an update beside TorchRL's SAC; steps/s on Hopper beside CleanRL's loop of SAC",
    ),
    "replay": ("replay.replay_tables", None, "a sample and the memory of stacked Atari images"),
    "planning": (
        "planning.planning_tables",
        None,
        "tree search beside mctx; its cost by simulations and depth; its share on Atari",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``TOPIC ...``, ``--rounds``, ``--frames`` and ``--json``."""
    topics = "; ".join(f"{name}: {what}" for name, (_, _, what) in TOPICS.items())
    parser.add_argument("topics", nargs="*", choices=[[], *TOPICS], metavar="TOPIC", help=f"{topics} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that medians are taken over (default: 5)")
    parser.add_argument(
        "--frames", type=int, default=6_000, help="frames of each CartPole run, twice those of MinAtar (default: 6000)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of tables")


def run(args: argparse.Namespace) -> int:
    """Measures the topics and prints one line per case: the median, and the median ratio to its reference.

    Raises:
        AnalysisError: bad numbers, or a missing part of the installation.
    """
    from torchrl_reg.analysis.errors import AnalysisError

    if args.rounds < 1:
        raise AnalysisError(f"--rounds must be at least 1, got {args.rounds}.")
    if args.frames < 3_000:
        raise AnalysisError(f"--frames must be at least 3000, got {args.frames}.")
    import torch

    from torchrl_reg.bench.measure import measured

    torch.set_num_threads(1)
    rows = []
    for topic in args.topics or list(TOPICS):
        for table in _tables(topic, args.frames):
            found = measured(table, args.rounds)
            rows += found
            if not args.json:
                print(f"{table.title} ({table.unit}, medians of {args.rounds} interleaved rounds, one thread)")
                for row in found:
                    print(f"  {row.name:42s} {row.amount:10.0f}  x{row.ratio:.2f} of {row.reference}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    return 0


def _tables(topic: str, frames: int) -> list:
    place, factor, _ = TOPICS[topic]
    module, name = place.split(".")
    make = getattr(importlib.import_module(f"torchrl_reg.bench.{module}"), name)
    return make() if factor is None else make(int(factor * frames))
