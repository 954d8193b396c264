"""A finite MDP as a model to plan in."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrl_reg.planning.scalar_models import Tables
from torchrl_reg.planning.scalar_search import Scalar
from torchrl_reg.planning.search import zero_evaluation
from torchrl_reg.planning.tree import Evaluate
from torchrl_reg.tabular import TabularMDP


class TabularModel:
    """Any :class:`torchrl_reg.tabular.TabularMDP`; states are its indices ``[M]``, rewards the expected ones.

    They are in the MDP's reward units.

    Where an action has several next states they are sampled, and a search keeps them all apart.

    Args:
        mdp: the MDP; its discount factor is not used: a search has its own.
        num_outcomes: next states that a search keeps apart for each action; None is all that an action can have, 1
            searches in open loop, see :func:`torchrl_reg.planning.mcts`.
        generator: draws the next states; by default torch's own.

    Raises:
        ValueError: if ``num_outcomes`` is below 1.

    Example:
        >>> from torchrl_reg.tabular import random_mdp
        >>> model = TabularModel(random_mdp(6, 3, gamma=0.9, seed=0, branching=2))
        >>> model.stochastic, model.num_outcomes
        (True, 2)
    """

    def __init__(
        self, mdp: TabularMDP, *, num_outcomes: int | None = None, generator: torch.Generator | None = None
    ) -> None:
        if num_outcomes is not None and num_outcomes < 1:
            raise ValueError(f"num_outcomes must be at least 1 or None, got {num_outcomes}.")
        self.mdp, self.generator = mdp, generator
        self.num_actions = mdp.num_actions
        possible = int((mdp.P[~mdp.terminal] > 0).sum(-1).max())
        self.stochastic = possible > 1
        self.num_outcomes = possible if num_outcomes is None else num_outcomes
        self._successor = mdp.P.argmax(-1)
        cumulative = mdp.P.cumsum(-1)
        self._cumulative = cumulative / cumulative[..., -1:]

    def reset(self, num_states: int, seed: int) -> Tensor:
        """First states of ``num_states`` episodes ``[M]``, uniform over those that are not terminal."""
        weights = self.mdp.start_distribution().cpu()
        generator = torch.Generator().manual_seed(seed)
        return torch.multinomial(weights, num_states, replacement=True, generator=generator).to(self.mdp.P.device)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward, next state and terminated, each ``[M]``; see :class:`torchrl_reg.planning.Model`."""
        if self.stochastic:
            u = torch.rand(len(state), 1, generator=self.generator, dtype=torch.float64, device=state.device)
            successor = torch.searchsorted(self._cumulative[state, action], u, right=True).squeeze(-1)
        else:
            successor = self._successor[state, action]
        return self.mdp.r[state, action], successor, self.mdp.terminal[successor]

    def scalar(self, evaluate: Evaluate) -> Scalar | None:
        """For searches tree by tree: of a deterministic MDP whose states are not evaluated."""
        if self.stochastic or evaluate is not zero_evaluation:
            return None
        nothing = torch.zeros(self.mdp.num_states, dtype=torch.float64)
        return Tables(self._successor, self.mdp.r.double(), self.mdp.terminal, nothing).scalar(evaluate)
