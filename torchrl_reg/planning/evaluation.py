"""The initial estimate for a new leaf: zero, the return of a random rollout, or a Q-network's value.

Shapes: ``M`` states, ``A`` actions, ``*S`` one state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchrl_reg.functional import soft_policy
from torchrl_reg.planning.tree import Evaluation, Model, check_at_least, forgetting
from torchrl_reg.regularizers.checks import check_discount


class RandomRollout:
    r"""The return :math:`\sum_t \gamma^t r_t` ``[M]`` of random actions until the episode ends or ``max_steps``.

    The actions are uniform, the returns in reward units.

    States that the model keeps on the way (snapshots of an emulator) are released at once.

    Source: Kocsis and Szepesvari 2006.

    Args:
        model: the model to plan in.
        max_steps: largest number of steps, >= 1.
        gamma: discount in [0, 1].
        generator: draws the actions; by default torch's own.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> from torchrl_reg.planning import TabularModel
        >>> from torchrl_reg.tabular import gridworld
        >>> RandomRollout(TabularModel(gridworld(["G."], 0.5)), max_steps=1, gamma=0.9)(torch.tensor([1])).value.shape
        torch.Size([1])
    """

    def __init__(
        self, model: Model, *, max_steps: int, gamma: float = 1.0, generator: torch.Generator | None = None
    ) -> None:
        check_at_least(1, max_steps=max_steps)
        self.gamma = check_discount(gamma, "gamma")
        self.model, self.max_steps, self.generator = model, max_steps, generator

    def __call__(self, state: Tensor) -> Evaluation:
        value = torch.zeros(len(state), dtype=torch.float64, device=state.device)
        index = torch.arange(len(state), device=state.device)
        with forgetting(self.model):
            for step in range(self.max_steps):
                action = torch.randint(self.model.num_actions, (len(state),), generator=self.generator)
                reward, state, ended = self.model.step(state, action.to(state.device))
                value[index] += self.gamma**step * reward
                state, index = state[~ended], index[~ended]
                if len(index) == 0:
                    break
        return Evaluation(value)


class QEvaluation:
    r"""A Q-network's values: those of the untried actions, their regularized maximum for the leaf, and its policy.

    Args:
        q_network: observations ``[M, *O]`` -> action values ``[M, A]``.
        regularizer: its value is that of the leaf, see :mod:`torchrl_reg.regularizers`.
        prior_tau: temperature > 0 of the prior, softmax of the action values, in reward units; None is the
            regularizer's policy.
        observe: states ``[M, *S]`` -> observations; None where the state is the observation.
        use_q: whether untried actions have the network's values; else it gives values and priors of nodes alone.

    Example:
        >>> from torchrl_reg.regularizers import Entropy
        >>> evaluate = QEvaluation(nn.Linear(4, 2), Entropy(0.1))
        >>> evaluate(torch.zeros(3, 4)).prior.shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        q_network: Callable[[Tensor], Tensor],
        regularizer: nn.Module,
        *,
        prior_tau: float | None = None,
        observe: Callable[[Tensor], Tensor] | None = None,
        use_q: bool = True,
    ) -> None:
        self.q_network, self.regularizer, self.observe, self.use_q = q_network, regularizer, observe, use_q
        self.prior_tau = prior_tau

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Evaluation:
        q = self.q_network(state if self.observe is None else self.observe(state))
        out = self.regularizer(q)
        prior = out.pi if self.prior_tau is None else soft_policy(q, self.prior_tau)
        return Evaluation(out.value, q if self.use_q else None, prior)
