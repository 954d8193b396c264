"""Finite MDPs: their tables, and the worlds that tests and recipes use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TabularMDP:
    r"""Finite MDP: transition probabilities, expected rewards and a discount factor.

    Everything is copied to float64. A terminal state has value 0 and its own rows of ``P`` and
    ``r`` are ignored, so a transition into it ends the episode.

    Args:
        P: probability of the next state ``[S, A, S]``; ``P[s, a]`` sums to 1.
        r: expected reward of an action ``[S, A]``.
        gamma: discount factor in [0, 1).
        terminal: True at terminal states ``[S]``, bool; by default none is.

    Raises:
        ValueError: if a shape does not fit, an entry is not finite, a row of ``P`` is not a
            probability distribution (to 1e-6) or ``gamma`` is outside [0, 1).

    Example:
        >>> stay_or_swap = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]
        >>> mdp = TabularMDP(torch.tensor(stay_or_swap), torch.eye(2), gamma=0.9)
        >>> mdp.num_states, mdp.num_actions, mdp.P.dtype
        (2, 2, torch.float64)
    """

    P: Tensor
    r: Tensor
    gamma: float
    terminal: Tensor = field(default_factory=lambda: torch.tensor(False))

    def __post_init__(self) -> None:
        P = torch.as_tensor(self.P).detach().to(torch.float64, copy=True)
        r = torch.as_tensor(self.r).detach().to(P, copy=True)
        if P.ndim != 3 or P.shape[0] != P.shape[2] or 0 in P.shape:
            raise ValueError(f"P must have shape [S, A, S], got {list(P.shape)}.")
        if r.shape != P.shape[:2]:
            raise ValueError(f"r must have shape [S, A] = {list(P.shape[:2])}, got {list(r.shape)}.")
        if not (P.isfinite().all() and r.isfinite().all()):
            raise ValueError("P and r must be finite, got an entry that is not.")
        if (P < 0).any():
            raise ValueError(f"P must not be negative, got a smallest entry of {P.min().item()}.")
        worst_row = (P.sum(-1) - 1).abs().max().item()
        if worst_row > 1e-6:
            raise ValueError(f"every P[s, a] must sum to 1, got a row that is off by {worst_row}.")
        if not 0.0 <= self.gamma < 1.0:
            raise ValueError(f"gamma must be in [0, 1), got {self.gamma}.")
        terminal = torch.as_tensor(self.terminal, device=P.device)
        if terminal.dtype != torch.bool or terminal.shape not in ((), P.shape[:1]):
            raise ValueError(
                f"terminal must be bool of shape [S] = {list(P.shape[:1])}, "
                f"got {terminal.dtype} of shape {list(terminal.shape)}."
            )
        object.__setattr__(self, "P", P)
        object.__setattr__(self, "r", r)
        object.__setattr__(self, "gamma", float(self.gamma))
        object.__setattr__(self, "terminal", terminal.expand(P.shape[0]).clone())

    @property
    def num_states(self) -> int:
        """Number of states S."""
        return self.P.shape[0]

    @property
    def num_actions(self) -> int:
        """Number of actions A."""
        return self.P.shape[1]

    def mask_v(self, v: Tensor) -> Tensor:
        """State values ``[S]`` with 0 at the terminal states."""
        return v.masked_fill(self.terminal, 0.0)

    def mask_q(self, q: Tensor) -> Tensor:
        """Action values ``[S, A]`` with 0 at the terminal states."""
        return q.masked_fill(self.terminal.unsqueeze(-1), 0.0)

    def backup(self, v: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
        """One-step return ``r + bonus + gamma * P v`` ``[S, A]``, 0 at the terminal states."""
        return self.mask_q(self.r + bonus + self.gamma * (self.P @ self.mask_v(v)))

    def start_distribution(self, start: Tensor | None = None) -> Tensor:
        """Probability of each first state ``[S]``, float64: ``start``, checked, or uniform where no state is terminal.

        Raises:
            ValueError: if ``start`` has another shape, is no probability distribution (to 1e-6) or starts in a
                terminal state, or if every state is terminal.
        """
        if self.terminal.all():
            raise ValueError("terminal must leave a state to start in, got all True.")
        if start is None:
            free = (~self.terminal).to(self.P)
            return free / free.sum()
        start = torch.as_tensor(start).detach().to(self.P)
        if start.shape != self.terminal.shape:
            raise ValueError(f"start must have shape [S] = {list(self.terminal.shape)}, got {list(start.shape)}.")
        if not (start >= 0).all() or not abs(start.sum().item() - 1) <= 1e-6:
            raise ValueError(f"start must be a probability distribution, got {start.tolist()}.")
        if start[self.terminal].any():
            raise ValueError(f"start must be 0 at terminal states, got {start.tolist()}.")
        return start / start.sum()


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
