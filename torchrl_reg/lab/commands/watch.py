"""``torchrl-reg watch``: live curves in the terminal."""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from torchrl_reg.lab.analysis.documents import AnalysisError
from torchrl_reg.lab.analysis.sweeps import Watcher
from torchrl_reg.lab.analysis.watch_frame import watch_frame
from torchrl_reg.lab.commands.scripts import sweep_module

#: SLURM is asked no more often: its controller serves many.
_ASK_SECONDS = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``FOLDER ...``, ``--every``, ``--once`` and ``--runs``."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep, or any folder of runs")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two refreshes (default 5)")
    parser.add_argument("--once", action="store_true", help="print one frame and exit, as without a terminal")
    parser.add_argument(
        "--until-done", action="store_true", help="exit once no run of the sweeps is running or waiting"
    )
    parser.add_argument("--runs", action="store_true", help="one line per run, not per method")


def run(args: argparse.Namespace) -> int:
    """Shows the runs until Ctrl-C, then prints the last frame so that it stays on the screen.

    Raises:
        AnalysisError: no such folder, or ``--every`` out of range.
    """
    for folder in args.folders:
        if not folder.is_dir():
            raise AnalysisError(f"FOLDER must be an existing folder, got no folder {folder}.")
    if not 0 < args.every < float("inf"):
        raise AnalysisError(f"--every must be > 0 seconds, got {args.every:g}.")
    console, watcher = Console(), Watcher(args.folders)
    asked, notes, is_over = -_ASK_SECONDS, list[str](), False

    def screen(height: int | None) -> RenderableType:
        nonlocal asked, notes, is_over
        watcher.refresh()
        if height is None or time.monotonic() - asked > _ASK_SECONDS:
            asked, notes = time.monotonic(), _queue_notes(args.folders)
            is_over = args.until_done and all(map(sweep_module("status").is_over, args.folders))
        return watch_frame(watcher, single=args.runs, width=console.width, height=height, notes=notes)

    if not args.once and console.is_terminal:
        with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
            live.update(screen(console.height), refresh=True)
            while not is_over:
                time.sleep(args.every)
                live.update(screen(console.height), refresh=True)
    console.print(screen(None))
    return 0


def _queue_notes(folders: list[Path]) -> list[str]:
    """What SLURM says of the sweeps in ``folders``; nothing without the launcher, which comes with the source."""
    try:
        waiting_notes = sweep_module("status").waiting_notes
    except (ImportError, SystemExit):
        return []
    return [note for folder in folders for note in waiting_notes(folder)]
