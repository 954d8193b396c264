"""``torchrl-reg evaluate``: the returns of a trained policy over a given number of episodes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from torchrl_reg.lab.commands.selection import warn
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import is_done

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("greedy", "sampled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``RUN``, ``--trust``, ``--episodes``, ``--mode``, ``--seed`` and ``--device``."""
    parser.add_argument(
        "run_folder", metavar="RUN", help="folder of a run, an exported one, or a name of `torchrl-reg list`"
    )
    add_trust(parser)
    parser.add_argument(
        "--episodes", type=int, default=100, metavar="N", help="number of episodes (default: %(default)s)"
    )
    parser.add_argument("--mode", choices=MODES, help="greedy or sampled (default: both)")
    parser.add_argument("--seed", type=int, help="seed of the episodes (default: the run's, to repeat its evaluation)")
    parser.add_argument("--device", default="cpu", help="device of the policy (default: %(default)s)")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust``."""
    text = "module of your own classes that RUN may import (repeatable)"
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE", help=text)


def run(arguments: argparse.Namespace) -> int:
    """Prints mean and interval of each mode and appends a row ``evaluate`` to the record of a finished run.

    With the seed of the run, the first episodes are those of its last evaluation, and their means are compared.

    Raises:
        UserError: no episodes to run, a negative seed, or an unknown device.
        UserError: no policy, a damaged one, or an environment that cannot be built here.
    """
    if arguments.episodes < 1:
        raise UserError(f"--episodes must be >= 1, got {arguments.episodes}.")
    if arguments.seed is not None:
        checked_seed(arguments.seed)
    from torchrl.envs.utils import ExplorationType

    from torchrl_reg.lab.agents.saved import read_policy
    from torchrl_reg.lab.run.evaluation import episode_returns
    from torchrl_reg.lab.run.streams import named_device, set_up_cpu

    device = str(named_device(arguments.device, "--device"))
    saved = read_policy(arguments.run_folder, device=device, trust=arguments.trust)
    facts = saved.facts.get("run", {})
    row = saved.facts.get("evaluation", {})
    set_up_cpu(facts.get("threads", 1))  # as in the run
    seed = facts.get("seed", 0) if arguments.seed is None else arguments.seed
    # As many environments as in the run's evaluations, so that the first round repeats the last of them.
    num_envs = min(facts.get("eval_episodes", 10), arguments.episodes)
    env = saved.make_env(num_envs)
    columns: dict[str, float] = {"seed": seed, "episodes": arguments.episodes}
    for mode in MODES if arguments.mode is None else (arguments.mode,):
        kind = ExplorationType.RANDOM if mode == "sampled" else ExplorationType.DETERMINISTIC
        returns = episode_returns(
            env, saved.policy, kind, episodes=arguments.episodes, seed=seed, device=arguments.device
        )
        columns |= _print_summary(mode, returns)
        if seed == facts.get("seed") and num_envs == facts.get("eval_episodes"):
            _compare(mode, returns[:num_envs].mean().item(), row.get(f"return_{mode}_mean"), num_envs)
    env.close()
    _append(saved.path.parent, {"event": "evaluate", "frames": row.get("frames"), **columns})
    return 0


def checked_seed(seed: int) -> int:
    """``seed`` if torch's generators accept it.

    Raises:
        UserError: they do not.
    """
    if not 0 <= seed < 1 << 63:
        raise UserError(f"--seed must be >= 0 and below 2**63, got {seed}.")
    return seed


def _print_summary(mode: str, returns: Tensor) -> dict[str, float]:
    from torchrl_reg.lab.analysis.statistics import mean, stratified_estimate
    from torchrl_reg.lab.analysis.tables import number_text

    estimate = stratified_estimate([returns.numpy()], mean)
    spread = returns.std(correction=0).item()
    print(f"{mode}: {number_text(estimate)} over {len(returns)} episodes, standard deviation {spread:.4g}")
    numbers = {"mean": returns.mean().item(), "std": spread, "low": estimate.low, "high": estimate.high}
    return {f"return_{mode}_{name}": value for name, value in numbers.items()}


def _compare(mode: str, mean: float, before: float | None, episodes: int) -> None:
    if mean == before:
        print(f"{mode}: the first {episodes} repeat the run's last evaluation exactly: {mean:.6g}")
    elif before is not None:
        warn([f"{mode}: the first {episodes} return {mean:.6g} here and {before:.6g} in the run, on another machine"])


def _append(folder: Path, row: dict[str, object]) -> None:
    """Appends ``row`` to the record of a finished run; exported folders have none, unfinished runs are skipped."""
    record = folder / "metrics.jsonl"
    if not record.is_file():
        return
    if not is_done(folder):
        warn([f"{record} was not changed: the run is not finished"])
        return
    from torchrl_reg.lab.run.metrics import MetricsFile

    MetricsFile(record).append(row)
    print(f"appended to {record}")
