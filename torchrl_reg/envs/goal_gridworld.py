"""A gridworld whose goal changes from episode to episode, and is part of the observation.

Shapes: ``N`` sub-environments, ``C`` cells, ``G`` goals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Categorical, Composite, Unbounded

from torchrl_reg.envs.settings import EnvError
from torchrl_reg.envs.tabular import TabularEnv
from torchrl_reg.tabular import TabularMDP, gridworld, gridworld_cells

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
        lines = layout.split()
        places = [i for i, (row, column) in enumerate(cells) if lines[row][column] == "G"]
        chosen = list(range(len(places))) if goals is None else list(goals)
        if not places:
            raise EnvError("layout must have at least one G, got none.")
        if not chosen or not set(chosen) <= set(range(len(places))):
            raise EnvError(f"goals must be some of 0 to {len(places) - 1}, got {chosen}.")
        self.num_cells, self.num_goals = len(cells), len(places)
        free = layout.replace("G", ".")
        worlds = [gridworld(_with_goal(free, cells[place]), gamma=0.0) for place in places]
        size = len(cells) * len(places)
        start = torch.zeros(len(places), len(cells), dtype=torch.float64)
        first, last = (0, len(lines[0])) if starts is None else starts
        for goal in chosen:
            start[goal] = torch.tensor([float(first <= column <= last) for _, column in cells])
            start[goal, places[goal]] = 0.0
        if not start.any():
            raise EnvError(f"starts must be columns with a free cell in the layout, got {starts}.")
        mdp = TabularMDP(
            torch.block_diag(*[world.P.reshape(-1, len(cells)) for world in worlds]).reshape(size, 4, size),
            torch.cat([world.r for world in worlds]),
            0.0,
            torch.cat([world.terminal for world in worlds]),
        )
        start = start.flatten() / start.sum()
        super().__init__(mdp, num_envs, max_episode_frames=max_episode_frames, start=start, device=device)

    def _make_specs(self, num_states: int, num_actions: int) -> None:
        super()._make_specs(num_states, num_actions)
        batch, device = self.batch_size, self.device
        widths = {"observation": self.num_cells + self.num_goals, "cell": self.num_cells, "goal": self.num_goals}
        specs = {
            key: Unbounded(torch.Size([*batch, n]), dtype=torch.float32, device=device) for key, n in widths.items()
        }
        self.observation_spec = Composite(
            **specs,
            state=Categorical(num_states, shape=batch, dtype=torch.int64, device=device),
            steps=Unbounded(torch.Size([*batch, 1]), dtype=torch.int64, device=device),
            shape=batch,
            device=device,
        )

    def _observed(self, state: Tensor, steps: Tensor) -> TensorDict:
        cell = self._one_hot[state % self.num_cells, : self.num_cells]
        goal = self._one_hot[state // self.num_cells, : self.num_goals]
        parts = {"observation": torch.cat((cell, goal), -1), "cell": cell, "goal": goal, "state": state, "steps": steps}
        return TensorDict(parts, batch_size=self.batch_size, device=self.device)


def _with_goal(layout: str, cell: tuple[int, int]) -> list[str]:
    lines = layout.split()
    row, column = cell
    lines[row] = lines[row][:column] + "G" + lines[row][column + 1 :]
    return lines
