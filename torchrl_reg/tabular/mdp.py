"""Finite Markov decision processes in float64.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
