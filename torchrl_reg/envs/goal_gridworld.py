"""Gridworlds by name, and one whose goal changes from episode to episode and is part of the observation.

Shapes: ``N`` sub-environments, ``C`` cells, ``G`` goals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_reg.envs.settings import EnvError, check_name
from torchrl_reg.envs.tabular import TabularEnv
from torchrl_reg.tabular import MIRL_WORLDS, TabularMDP, gridworld, gridworld_cells

#: A room to start in, a passage, and a room of goals (``G``).
TWO_ROOMS = """
#################
#...#########.GG#
#...............#
#...#########.GG#
#################
"""


class GoalGridworldEnv(TabularEnv):
    """``N`` walks in a gridworld, each episode towards one of ``goals``, drawn uniformly.

    What an agent needs is in ``observation`` (the one-hot cell, then the one-hot goal: float32 ``[N, C + G]``);
    ``cell`` (``[N, C]``) and ``goal`` (``[N, G]``) are its parts, for a prior that should see only one. Otherwise
    as :class:`TabularEnv`, whose ``state`` is ``goal * C + cell``: -1 a step, 9 on entering the goal, which terminates.

    Args:
        num_envs: number of sub-environments N.
        layout: as for :func:`~torchrl_reg.tabular.gridworld`; its ``G`` are the cells that may be the goal.
        goals: which of them are, as indices in reading order; None is all. G counts all, so that observations of
            different ``goals`` fit one network.
        starts: columns ``(first, last)`` that an episode starts in; None is anywhere but in the goal.
        max_episode_frames: steps after which an episode is truncated.
        device: where the tensors live.

    Raises:
        EnvError: a goal that the layout does not have.

    Example:
        >>> env = GoalGridworldEnv(4, goals=[0, 1], max_episode_frames=10)
        >>> env.reset()["cell"].shape, env.reset()["goal"].shape
        (torch.Size([4, 27]), torch.Size([4, 4]))
    """

    def __init__(
        self,
        num_envs: int,
        *,
        layout: str = TWO_ROOMS,
        goals: Sequence[int] | None = None,
        starts: tuple[int, int] | None = None,
        max_episode_frames: int = 50,
        device: torch.device | str = "cpu",
    ) -> None:
        cells = gridworld_cells(layout)
        text = "\n".join(layout.split())
        free = text.replace("G", ".")
        worlds = [gridworld(free[:i] + "G" + free[i + 1 :], gamma=0.0) for i, mark in enumerate(text) if mark == "G"]
        chosen = list(range(len(worlds))) if goals is None else list(goals)
        if not worlds:
            raise EnvError("layout must have at least one G, got none.")
        if not chosen or not set(chosen) <= set(range(len(worlds))):
            raise EnvError(f"goals must be some of 0 to {len(worlds) - 1}, got {chosen}.")
        self.num_cells, self.num_goals = len(cells), len(worlds)
        first, last = (0, len(text)) if starts is None else starts
        inside = torch.tensor([first <= column <= last for _, column in cells])
        start = torch.zeros(len(worlds), len(cells), dtype=torch.float64)
        for goal in chosen:
            start[goal] = (inside & ~worlds[goal].terminal).double()
        if not start.any():
            raise EnvError(f"starts must be columns with a free cell in the layout, got {starts}.")
        size = start.numel()
        mdp = TabularMDP(
            torch.block_diag(*[world.P.reshape(-1, len(cells)) for world in worlds]).reshape(size, 4, size),
            torch.cat([world.r for world in worlds]),
            0.0,
            torch.cat([world.terminal for world in worlds]),
        )
        start = start.flatten() / start.sum()
        super().__init__(mdp, num_envs, max_episode_frames=max_episode_frames, start=start, device=device)

    def _widths(self, num_states: int) -> dict[str, int]:
        return {"observation": self.num_cells + self.num_goals, "cell": self.num_cells, "goal": self.num_goals}

    def _observed(self, state: Tensor) -> dict[str, Tensor]:
        cell = self._one_hot[state % self.num_cells, : self.num_cells]
        goal = self._one_hot[state // self.num_cells, : self.num_goals]
        return {"observation": torch.cat((cell, goal), -1), "cell": cell, "goal": goal, "state": state}


def gridworld_env(
    num_envs: int, *, game: str, max_episode_frames: int = 200, device: torch.device | str = "cpu"
) -> TabularEnv:
    """``num_envs`` walks in the gridworld ``game``: one of :data:`torchrl_reg.tabular.MIRL_WORLDS`, or ``"goals"``.

    Every step gives -1, entering the goal 9 and ends the episode; the next one starts in a random free cell.

    Source: Grau-Moya et al. 2019 (MIRL): rewards, restart at a random location. The episode that ends at the goal
    (terminal, so nothing is bootstrapped there) is our reading of "restart"; the time limit is ours.

    Raises:
        EnvError: unknown game.
    """
    check_name("game", game, (*MIRL_WORLDS, "goals"))
    if game == "goals":
        return GoalGridworldEnv(num_envs, max_episode_frames=max_episode_frames, device=device)
    mdp = gridworld(MIRL_WORLDS[game], gamma=0.0)
    return TabularEnv(mdp, num_envs, max_episode_frames=max_episode_frames, device=device)
