"""Tabular MDPs and gridworlds as environments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Categorical, TensorSpec, Unbounded

from torchrl_reg.envs.settings import check_name
from torchrl_reg.envs.tensor_env import TensorEnv
from torchrl_reg.tabular import MIRL_WORLDS, TabularMDP, gridworld, gridworld_cells


class TabularEnv(TensorEnv):
    r"""``N`` independent walks in a :class:`TabularMDP`.

    Keys: ``observation`` (the state as a one-hot vector, float32 ``[N, S]``), ``state`` (the same as an index, int64
    ``[N]``), ``steps`` (since the start of the episode, int64 ``[N, 1]``), ``action`` (int64 ``[N]``); under ``next``
    also ``reward``, ``done``, ``terminated`` and ``truncated``, each ``[N, 1]``. The reward is the MDP's expected
    ``r(s, a)``.

    Reaching a terminal state *terminates* the episode, ``max_episode_frames`` *truncates* it (possibly both at once),
    and the next one starts in a state drawn from ``start``. ``state`` and ``steps`` are read from the tensordict that
    is stepped, so a step can be taken from any state; the only state of the environment itself is its random
    generator. After ``set_seed`` all draws are a function of the seed and ``N``, on any device.

    Args:
        mdp: the MDP; its discount factor is not used.
        num_envs: number of sub-environments N.
        max_episode_frames: steps after which an episode is truncated.
        start: distribution of the first state ``[S]``; None is uniform over the non-terminal states.
        device: where the tensors live and the steps are computed.

    Raises:
        ValueError: ``num_envs`` or ``max_episode_frames`` below 1, or ``start`` is not a distribution over the
            non-terminal states.

    Example:
        >>> from torchrl_reg.tabular import chain
        >>> env = TabularEnv(chain(3, gamma=0.9), num_envs=4, max_episode_frames=10)
        >>> env.rollout(5, break_when_any_done=False)["observation"].shape
        torch.Size([4, 5, 3])
    """

    def __init__(
        self,
        mdp: TabularMDP,
        num_envs: int,
        *,
        max_episode_frames: int,
        start: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        widths = self._widths(mdp.num_states)
        observation: dict[str, TensorSpec] = {
            key: Unbounded(width, dtype=torch.float32) for key, width in widths.items()
        }
        observation["state"] = Categorical(mdp.num_states)
        action = Categorical(mdp.num_actions)
        super().__init__(num_envs, observation, action, max_episode_frames=max_episode_frames, device=device)
        # Buffers, so that they move with the environment; not persistent, because they are constants.
        self._start: Tensor
        self._transition: Tensor
        self._reward: Tensor
        self._terminal: Tensor
        self._one_hot: Tensor
        tables = {
            "_start": _cumulative(_start_distribution(mdp, start)),
            "_transition": _cumulative(mdp.P),
            "_reward": mdp.r.float(),
            "_terminal": mdp.terminal,
            "_one_hot": torch.eye(mdp.num_states),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.to(self.device), persistent=False)

    def _widths(self, num_states: int) -> dict[str, int]:
        """Lengths of the vectors in :meth:`_observation`, by key."""
        return {"observation": num_states}

    def _observation(self, state: Tensor) -> dict[str, Tensor]:
        return {"observation": self._one_hot[state], "state": state}

    def _begin(self) -> dict[str, Tensor]:
        return self._observation(_draw(self._start.expand(*self.batch_size, -1), self._generator))

    def _advance(self, tensordict: TensorDictBase) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        state, action = tensordict["state"], tensordict["action"]
        next_state = _draw(self._transition[state, action], self._generator)
        reward, terminated = self._reward[state, action], self._terminal[next_state]
        return self._observation(next_state), reward.unsqueeze(-1), terminated.unsqueeze(-1)


def _start_distribution(mdp: TabularMDP, start: Tensor | None) -> Tensor:
    try:
        return mdp.start_distribution(start)
    except ValueError as error:
        raise ValueError(str(error)) from None


def _cumulative(probabilities: Tensor) -> Tensor:
    """Cumulative sums over the last dimension that end in exactly 1 at the last state of positive probability."""
    total = probabilities.cumsum(-1)
    return total / total[..., -1:]


def _draw(cumulative: Tensor, generator: torch.Generator) -> Tensor:
    """A state ``[N]`` from each row of ``cumulative [N, S]``: the first whose cumulative probability exceeds u < 1."""
    u = torch.rand(len(cumulative), 1, generator=generator, dtype=cumulative.dtype).to(cumulative.device)
    return torch.searchsorted(cumulative.contiguous(), u, right=True).squeeze(-1)


#: A room, a passage, and a room with four goals (``G``).
TWO_ROOMS = """
#################
#...#########.GG#
#...............#
#...#########.GG#
#################
"""


class GoalGridworldEnv(TabularEnv):
    """``N`` walks in a gridworld; the goal of each episode is drawn uniformly from ``goals``.

    ``observation`` is the one-hot cell followed by the one-hot goal, float32 ``[N, C + G]``; ``cell`` (``[N, C]``) and
    ``goal`` (``[N, G]``) are its parts, for priors conditioned on one of them. Every step gives -1; entering the goal
    gives 9 and terminates. The rest is as in :class:`TabularEnv`, with ``state = goal * C + cell``.

    Args:
        num_envs: number of sub-environments N.
        layout: as for :func:`~torchrl_reg.tabular.gridworld`; its ``G`` marks are the possible goals.
        goals: indices of the goals in use, in reading order; None is all. The one-hot goal always has one entry per
            mark, so that one network fits environments with different ``goals``.
        starts: columns ``(first, last)`` in which episodes start; None is all. Episodes never start in the goal.
        max_episode_frames: steps after which an episode is truncated.
        device: where the tensors live.

    Raises:
        ValueError: a goal that is not in the layout, or no free cell in ``starts``.

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
        selected = list(range(len(worlds))) if goals is None else list(goals)
        if not worlds:
            raise ValueError("layout must have at least one G, got none.")
        if not selected or not set(selected) <= set(range(len(worlds))):
            raise ValueError(f"goals must be some of 0 to {len(worlds) - 1}, got {selected}.")
        self.num_cells, self.num_goals = len(cells), len(worlds)
        first, last = (0, len(text)) if starts is None else starts
        inside = torch.tensor([first <= column <= last for _, column in cells])
        start = torch.zeros(len(worlds), len(cells), dtype=torch.float64)
        for goal in selected:
            start[goal] = (inside & ~worlds[goal].terminal).double()
        if not start.any():
            raise ValueError(f"starts must be columns with a free cell in the layout, got {starts}.")
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

    def _observation(self, state: Tensor) -> dict[str, Tensor]:
        cell = self._one_hot[state % self.num_cells, : self.num_cells]
        goal = self._one_hot[state // self.num_cells, : self.num_goals]
        return {"observation": torch.cat((cell, goal), -1), "cell": cell, "goal": goal, "state": state}


def gridworld_env(
    num_envs: int, *, game: str, max_episode_frames: int = 200, device: torch.device | str = "cpu"
) -> TabularEnv:
    """``num_envs`` walks in the gridworld ``game``: one of :data:`torchrl_reg.tabular.MIRL_WORLDS`, or ``"goals"``.

    Every step gives -1; entering the goal gives 9 and terminates. The next episode starts in a random free cell.

    Source: Grau-Moya et al. 2019 (MIRL): rewards, restart at a random location. Treating the goal as terminal (no
    bootstrap) is our reading of "restart"; the time limit is ours.

    Raises:
        ValueError: unknown game.
    """
    check_name("game", game, (*MIRL_WORLDS, "goals"))
    if game == "goals":
        return GoalGridworldEnv(num_envs, max_episode_frames=max_episode_frames, device=device)
    mdp = gridworld(MIRL_WORLDS[game], gamma=0.0)
    return TabularEnv(mdp, num_envs, max_episode_frames=max_episode_frames, device=device)
