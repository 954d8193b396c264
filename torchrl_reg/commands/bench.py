"""``torchrl-reg bench``: ratios of our speed to that of others, measured in one run on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json

TOPICS = {
    "cartpole": "steps/s from end to end: ours, a hand-written script, CleanRL's loop, TorchRL's parts, SB3",
    "compile": "the same with compiled updates: ours, a hand-written script, CleanRL's loop",
    "minatar": "steps/s on MinAtar Breakout: ours, a hand-written script",
    "atari": "steps/s on Atari Breakout: ours, CleanRL's loop",
    "update": "a loss forward: ours, hand-written PyTorch, TorchRL's",
    "control": "an update of a continuous policy: IQ, M-IQ, PCL beside TorchRL's SAC",
    "replay": "a sample and the memory of stacked Atari images",
    "planning": "tree search beside mctx; its cost by simulations and depth; its share on Atari",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``TOPIC ...``, ``--rounds``, ``--frames`` and ``--json``."""
    topics = "; ".join(f"{name}: {what}" for name, what in TOPICS.items())
    parser.add_argument("topics", nargs="*", choices=[[], *TOPICS], metavar="TOPIC", help=f"{topics} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that medians are taken over (default: 5)")
    parser.add_argument(
        "--frames", type=int, default=6_000, help="frames of each CartPole run, twice those of MinAtar (default: 6000)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of tables")


def run(args: argparse.Namespace) -> int:
    """Measures the topics and prints a line a case: median, and median ratio to its reference.

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
    if topic in ("cartpole", "compile"):
        from torchrl_reg.bench.cartpole import cartpole_tables, compiled_tables

        return cartpole_tables(frames) if topic == "cartpole" else compiled_tables(2 * frames)
    if topic in ("minatar", "atari"):
        from torchrl_reg.bench.images import atari_tables, minatar_tables

        return minatar_tables(frames // 2) if topic == "minatar" else atari_tables()
    if topic == "replay":
        from torchrl_reg.bench.replay import replay_tables

        return replay_tables()
    if topic == "planning":
        from torchrl_reg.bench.planning import planning_tables

        return planning_tables()
    from torchrl_reg.bench.losses import control_tables, update_tables

    return update_tables() if topic == "update" else control_tables()
