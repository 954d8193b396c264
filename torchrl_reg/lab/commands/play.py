"""``torchrl-reg play``: an episode of a trained policy, in a window or as a video."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchrl_reg.lab.commands.evaluate import MODES, add_trust, checked_seed
from torchrl_reg.lab.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``RUN``, ``--trust``, ``--out``, ``--mode``, ``--seed``, ``--max-steps`` and ``--device``."""
    parser.add_argument(
        "run_folder", metavar="RUN", help="folder of a run, an exported one, or a name of `torchrl-reg list`"
    )
    add_trust(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=".gif or .mp4 (default: a window, or RUN/videos; of a trained agent ./videos)",
    )
    parser.add_argument("--mode", choices=MODES, default="greedy", help="mode of acting (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episode (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, metavar="N", help="maximum length of the episode")
    parser.add_argument("--device", default="cpu", help="device of the policy (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Shows an episode; prints the file and the number of frames.

    Raises:
        UserError: no steps to show, or an unknown device.
        UserError: no policy, or an environment that cannot be built or drawn here.
    """
    if arguments.max_steps is not None and arguments.max_steps < 1:
        raise UserError(f"--max-steps must be >= 1, got {arguments.max_steps}.")
    from torchrl_reg.lab.agents.panel import episode_frames, frames_per_second
    from torchrl_reg.lab.agents.pictures import has_display
    from torchrl_reg.lab.agents.saved import read_policy
    from torchrl_reg.lab.agents.video import show_in_window, write_video
    from torchrl_reg.lab.run.streams import named_device

    checked_seed(arguments.seed)
    saved = read_policy(
        arguments.run_folder, device=str(named_device(arguments.device, "--device")), trust=arguments.trust
    )
    frames = episode_frames(
        saved,
        seed=arguments.seed,
        mode=arguments.mode,
        max_steps=arguments.max_steps,
        device=arguments.device,
    )
    if arguments.out is None and has_display():
        count = show_in_window(str(arguments.run_folder), frames, frames_per_second(saved))
        print(f"{count} frames shown")
        return 0
    beside = saved.path.parent if Path(arguments.run_folder).exists() else Path()
    path = arguments.out or beside / "videos" / f"{arguments.mode}-seed={arguments.seed}.gif"
    count = write_video(path, frames, frames_per_second(saved))
    print(f"{'' if arguments.out else 'no display, so written to '}{path}: {count} frames")
    return 0
