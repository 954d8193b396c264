"""Which of the four goals trained policies go to: their paths, and their actions at the origin on level sets of Q.

    python recipes/soft_q.py env=multigoal run.dir=results/multigoal/soft_q
    python recipes/sac.py env=multigoal run.dir=results/multigoal/sac
    python recipes/multigoal.py results/multigoal/soft_q results/multigoal/sac

Reads finished runs of soft_q, sac and virel on ``env=multigoal``; writes ``multigoal.png`` and prints, for each run (by
the name of its folder), the share of episodes from the origin that end at each goal, and the share of actions there in
each of the four directions. All goals are alike, so exp(Q / tau) has a mode towards each: a sampler finds all four, a
Gaussian represents one. Source: the figure of Haarnoja et al. 2017 (soft Q-learning), section 5.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_reg import load_policy
from torchrl_reg.envs import EnvSettings, make_env
from torchrl_reg.envs.multigoal import GOALS
from torchrl_reg.lab import UserError, trained_critics
from torchrl_reg.lab.analysis import find_runs
from torchrl_reg.lab.analysis.curves import GREY, LIGHT
from torchrl_reg.lab.analysis.plots import new_figure, save

STEPS = 30


@dataclass
class Trained:
    """A policy and its critics at the end of their run.

    Args:
        name: the name of the run's folder.
        actor: the policy.
        critics: its Q-functions.
    """

    name: str
    actor: Any
    critics: list[Any]

    def q(self, state: Tensor, action: Tensor) -> Tensor:
        """The smaller of the critics ``[B]`` at states and actions ``[B, 2]``."""
        data = TensorDict({"observation": state, "action": action}, state.shape[:-1])
        return torch.stack([critic(data.copy())["state_action_value"].squeeze(-1) for critic in self.critics]).amin(0)


def read(folder: Path) -> Trained:
    """The policy of a finished run.

    Raises:
        UserError: no run on ``env=multigoal`` of a recipe with critics, or one without a checkpoint.
    """
    record = next((each for each in find_runs(folder) if each.env.partition("/")[0] == "multigoal"), None)
    checkpoints = [] if record is None else sorted((record.path / "checkpoints").glob("checkpoint-*.torchrl"))
    if record is None or not checkpoints or record.recipe not in ("soft_q", "sac", "virel"):
        found = "none" if record is None else f"{record.recipe} with {len(checkpoints)} checkpoints"
        raise UserError(f"{folder} must hold a finished run of soft_q, sac or virel on env=multigoal, got {found}.")
    return Trained(folder.resolve().name, load_policy(record.path), trained_critics(record.path))


def paths(trained: Trained, count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Episodes of ``count`` points from the origin: positions ``[T, 2]``, and the goal each ends at (4: none).

    All start at one state, so only the policy makes them differ.
    """
    env = make_env(EnvSettings("multigoal"), count)
    env.set_seed(seed)
    torch.manual_seed(seed)
    start = env.reset().set("observation", torch.zeros(count, 2))
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = env.rollout(STEPS, trained.actor, auto_reset=False, tensordict=start, break_when_any_done=False)
    done = data["next", "done"].squeeze(-1)
    length = done.int().argmax(1) + 1  # truncated after STEPS steps at the latest
    end = data["next"][torch.arange(count), length - 1]
    last, arrived = end["observation"], end["terminated"].squeeze(-1)
    goal = torch.where(arrived, torch.cdist(last, GOALS).argmin(-1), len(GOALS))
    walks = zip(data["observation"], length, last, strict=True)
    return [torch.cat((each[:n], stop.unsqueeze(0))) for each, n, stop in walks], goal


def directions(trained: Trained, count: int, seed: int = 0) -> Tensor:
    """Shares ``[4]`` of the actions sampled at the origin that point right, left, up and down, within 45 degrees."""
    torch.manual_seed(seed)
    return (_actions(trained, count) @ GOALS.T).argmax(-1).bincount(minlength=4) / count


def _actions(trained: Trained, count: int) -> Tensor:
    """Actions ``[count, 2]`` sampled at the origin."""
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return trained.actor(TensorDict({"observation": torch.zeros(count, 2)}, [count]))["action"]


def draw(runs: Sequence[Trained], count: int, path: Path) -> list[list[float]]:
    """A column of two panels for each run; returns for each the shares of the four goals, and of none."""
    figure = new_figure(3.6 * len(runs), 7)
    panels, shares = figure.subplots(2, len(runs), squeeze=False), []
    for trained, (world, actions) in zip(runs, panels.T, strict=True):
        walks, goal = paths(trained, count)
        shares.append((goal.bincount(minlength=5) / count).tolist())
        for walk in walks[:100]:
            world.plot(*walk.T, color=LIGHT[0], alpha=0.4, linewidth=0.8)
        world.plot(*GOALS.T, "o", color=LIGHT[1], markersize=9)
        percents = ", ".join(f"{share:.0%}" for share in shares[-1][:4])
        world.set(title=f"{trained.name}: {percents}", xlim=(-7, 7), ylim=(-7, 7), aspect="equal")
        _draw_actions(actions, trained)
    save(figure, path)
    return shares


def _draw_actions(panel: Axes, trained: Trained, samples: int = 300) -> None:
    """Level sets of Q at the origin, and sampled actions."""
    axis = torch.linspace(-1, 1, 61)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        q = trained.q(torch.zeros_like(grid), grid).reshape(61, 61)
    panel.clabel(panel.contour(axis, axis, q.T, levels=15, cmap="YlGnBu", linewidths=0.9), fontsize=6)
    panel.plot(*_actions(trained, samples).T, ".", color=LIGHT[1], markersize=3)
    panel.axhline(0, color=GREY, linewidth=0.4)
    panel.axvline(0, color=GREY, linewidth=0.4)
    panel.set(title="actions at the origin, level sets of Q", aspect="equal")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Which of the four goals trained policies go to.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished runs on env=multigoal")
    parser.add_argument("--episodes", type=int, default=400, help="of each policy (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("multigoal.png"), help="(default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.episodes < 1:
        parser.error(f"--episodes must be >= 1, got {chosen.episodes}")
    torch.set_num_threads(1)
    try:
        trained = [read(folder) for folder in chosen.runs]
    except UserError as error:
        parser.error(str(error))
    try:  # before the work
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a file that can be written, got {chosen.out}: {error.strerror}")
    names = ("right", "left", "up", "down", "none")
    for each, ends in zip(trained, draw(trained, chosen.episodes, chosen.out), strict=True):
        for what, shares in (("episodes", ends), ("actions at the origin", directions(each, 4_000).tolist())):
            numbers = ", ".join(f"{name} {share:.3f}" for name, share in zip(names, shares, strict=False))
            print(f"{each.name}, {what}: {numbers}")
    print(chosen.out)


if __name__ == "__main__":
    main()
