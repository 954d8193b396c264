"""Small MDPs to solve exactly: random ones, a chain and gridworlds.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from torchrl_reg.tabular.mdp import TabularMDP

# (row, column) displacements of the gridworld's actions 0 to 3: up, right, down, left.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))

MIRL_WORLDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "corridor": ("...................G",),
        "square": (*["........"] * 7, ".......G"),
        "grid": (*[".........", ".#.#.#.#."] * 2, "....G....", *[".#.#.#.#.", "........."] * 2),
    }
)
"""The gridworlds that MIRL is compared on, as layouts for :func:`gridworld`.

Source: Grau-Moya et al. 2019 name them and give their rewards, not their maps, so these are ours: in the corridor one
action is useful, in the open square two, and in the grid of streets, with the goal in the middle, all four alike.
"""


def random_mdp(
    num_states: int,
    num_actions: int,
    gamma: float,
    *,
    seed: int,
    branching: int | None = None,
    deterministic: bool = False,
) -> TabularMDP:
    """Random MDP (Garnet): flat Dirichlet transitions, rewards uniform in [-1, 1), never ending.

    Source: Archibald et al. 1995 (Garnet), with ``branching`` next states per action.

    Args:
        num_states: number of states S.
        num_actions: number of actions A.
        gamma: discount factor in [0, 1).
        seed: seed of the generator; equal seeds give equal MDPs.
        branching: number of distinct next states of every action; None allows all.
        deterministic: a single next state per action, as ``branching=1``.

    Returns:
        The MDP, ``P [S, A, S]``, ``r [S, A]`` in reward units.

    Raises:
        ValueError: if ``branching`` is outside 1 to ``num_states``, or contradicts
            ``deterministic``.
    """
    if deterministic:
        if branching not in (None, 1):
            raise ValueError(f"branching must be 1 or None if deterministic, got {branching}.")
        branching = 1
    branching = num_states if branching is None else branching
    if not 1 <= branching <= num_states:
        raise ValueError(f"branching must be in 1 to {num_states}, got {branching}.")
    generator = torch.Generator().manual_seed(seed)
    shape = (num_states, num_actions, num_states)
    order = torch.rand(shape, generator=generator, dtype=torch.float64)
    weight = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    successors = order.topk(branching, dim=-1).indices
    P = torch.zeros(shape, dtype=torch.float64).scatter(-1, successors, weight)
    r = 2 * torch.rand(shape[:2], generator=generator, dtype=torch.float64) - 1
    return TabularMDP(P / P.sum(-1, keepdim=True), r, gamma)


def chain(
    num_states: int,
    gamma: float,
    *,
    slip: float = 0.0,
    goal_reward: float = 1.0,
    step_reward: float = 0.0,
) -> TabularMDP:
    """Chain of states, action 0 left and action 1 right, whose last state is a terminal goal.

    Going left in the first state stays there.

    Source: the usual exploration chain; without slip, ``v(s) = gamma ** (S - 2 - s)`` by default.

    Args:
        num_states: number of states S >= 2, goal included.
        gamma: discount factor in [0, 1).
        slip: probability in [0, 1] that a uniformly random action replaces the chosen one.
        goal_reward: reward on entering the goal.
        step_reward: reward of every other step.

    Returns:
        The MDP, ``P [S, 2, S]``, ``r [S, 2]`` in reward units.

    Raises:
        ValueError: if there are fewer than two states or ``slip`` is outside [0, 1].
    """
    if num_states < 2:
        raise ValueError(f"num_states must be at least 2, got {num_states}.")
    state = torch.arange(num_states)
    successor = torch.stack([(state - 1).clamp(min=0), (state + 1).clamp(max=num_states - 1)], -1)
    return _world(successor, state == num_states - 1, gamma, slip, goal_reward, step_reward)


def gridworld(
    layout: str | Sequence[str],
    gamma: float,
    *,
    slip: float = 0.0,
    goal_reward: float = 9.0,
    step_reward: float = -1.0,
) -> TabularMDP:
    """Gridworld drawn as text: ``#`` wall, ``.`` free, ``G`` terminal goal.

    Actions 0 to 3 move up, right, down and left; a move into a wall or off the map stays. States
    are the cells of :func:`gridworld_cells`, in that order.

    Source: rewards of Grau-Moya et al. 2019 (MIRL): 9 at the goal, -1 elsewhere.

    Args:
        layout: lines of equal length, as one text or a sequence.
        gamma: discount factor in [0, 1).
        slip: probability in [0, 1] that a uniformly random action replaces the chosen one.
        goal_reward: reward on entering a goal.
        step_reward: reward of every other step.

    Returns:
        The MDP, ``P [S, 4, S]``, ``r [S, 4]`` in reward units.

    Raises:
        ValueError: if the lines differ in length, hold another character or no free cell, or if
            ``slip`` is outside [0, 1].

    Example:
        >>> gridworld(["..G"], gamma=0.5).r[:, 1].tolist()[:2]
        [-1.0, 9.0]
    """
    lines = _lines(layout)
    cells = gridworld_cells(layout)
    number = {cell: state for state, cell in enumerate(cells)}
    successor = [
        [number.get((row + down, col + right), number[row, col]) for down, right in MOVES] for row, col in cells
    ]
    goal = torch.tensor([lines[row][col] == "G" for row, col in cells])
    return _world(torch.tensor(successor), goal, gamma, slip, goal_reward, step_reward)


def gridworld_cells(layout: str | Sequence[str]) -> list[tuple[int, int]]:
    """(row, column) of every state of :func:`gridworld`: the cells that are no wall, row by row; S pairs.

    Raises:
        ValueError: as :func:`gridworld`.
    """
    return [
        (row, col) for row, line in enumerate(_lines(layout)) for col, character in enumerate(line) if character != "#"
    ]


def _lines(layout: str | Sequence[str]) -> list[str]:
    lines = layout.split() if isinstance(layout, str) else list(layout)
    if len({len(line) for line in lines}) != 1:
        raise ValueError(f"layout must be lines of equal length, got {lines}.")
    unknown = set("".join(lines)) - set("#.G")
    if unknown:
        raise ValueError(f"layout must hold '#', '.' and 'G' only, got {sorted(unknown)}.")
    if not any("." in line for line in lines):
        raise ValueError("layout must hold a free cell '.', got none.")
    return lines


def _world(
    successor: Tensor,
    goal: Tensor,
    gamma: float,
    slip: float,
    goal_reward: float,
    step_reward: float,
) -> TabularMDP:
    """MDP whose actions lead to ``successor [S, A]``, episodes ending in ``goal [S]``."""
    if not 0.0 <= slip <= 1.0:
        raise ValueError(f"slip must be in [0, 1], got {slip}.")
    moved = torch.nn.functional.one_hot(successor, len(goal)).double()
    P = (1 - slip) * moved + slip * moved.mean(1, keepdim=True)
    reward_on_entry = torch.where(goal, goal_reward, step_reward).double()
    return TabularMDP(P, P @ reward_on_entry, gamma, goal)
