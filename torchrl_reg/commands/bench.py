"""``torchrl-reg bench``: our speed relative to other implementations, measured side by side on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json

#: Topic -> module and name of its tables, multiple of ``--frames`` that a run takes (None: not used), and what it is.
TOPICS = {
    "cartpole": ("cartpole.cartpole", 1, "end-to-end steps/s: ours, hand-written, CleanRL's loop, stock TorchRL, SB3"),
    "compile": ("cartpole.compiled", 2, "the same with compiled updates: ours, hand-written, CleanRL's loop"),
    "seeds": ("cartpole.seeds", 1, "steps/s of eight seeds trained together: ours, one seed alone"),
    "minatar": ("images.minatar", 0.5, "steps/s on MinAtar Breakout: ours, hand-written"),
    "atari": ("images.atari", None, "steps/s on Atari Breakout: ours, CleanRL's loop"),
    "update": ("losses.update", None, "a loss forward: ours, hand-written PyTorch, TorchRL's"),
    "control": ("control.control", None, "continuous policies: updates beside TorchRL's SAC, Hopper beside CleanRL's"),
    "replay": ("replay.replay", None, "a sample and the memory of stacked Atari images"),
    "planning": ("planning.planning", None, "tree search beside mctx; cost by simulations and depth; share on Atari"),
}
#: Those whose networks can be put on another device.
ON_DEVICES = ("cartpole", "compile", "seeds", "minatar", "atari")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``TOPIC ...``, ``--rounds``, ``--frames``, ``--device`` and ``--json``."""
    topics = "; ".join(f"{name}: {what}" for name, (_, _, what) in TOPICS.items())
    parser.add_argument("topics", nargs="*", choices=[[], *TOPICS], metavar="TOPIC", help=f"{topics} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that medians are taken over (default: 5)")
    parser.add_argument("--frames", type=int, default=6_000, help="of a CartPole run, half on MinAtar (default: 6000)")
    parser.add_argument("--device", default="cpu", help="of whole runs of Q-learning, cuda for one (default: cpu)")
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
    topics = args.topics or list(TOPICS if args.device == "cpu" else ON_DEVICES)
    if args.device != "cpu" and not set(topics) <= set(ON_DEVICES):
        raise AnalysisError(f"--device must be cpu but for {', '.join(ON_DEVICES)}, got {args.device}.")
    import torch

    from torchrl_reg.bench.measure import measured

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise AnalysisError(f"--device must be one that this machine has, got {args.device}.")

    torch.set_num_threads(1)
    rows = []
    for topic in topics:
        for table in _tables(topic, args.frames, args.device):
            found = measured(table, args.rounds)
            rows += found
            if not args.json:
                print(f"{table.title} ({table.unit}, medians of {args.rounds} interleaved rounds, one thread)")
                for row in found:
                    print(f"  {row.name:42s} {row.amount:10.0f}  x{row.ratio:.2f} of {row.reference}", flush=True)
    if args.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    return 0


def _tables(topic: str, frames: int, device: str) -> list:
    place, factor, _ = TOPICS[topic]
    module, name = place.split(".")
    make = getattr(importlib.import_module(f"torchrl_reg.bench.{module}"), f"{name}_tables")
    sizes = [] if factor is None else [int(factor * frames)]
    return make(*sizes, **({} if device == "cpu" else {"device": device}))
