"""Rules of selection, the action that a simulation takes at a node: UCB1, PUCT and E2W.

Shapes: ``B`` trees, ``A`` actions. A rule is called with the current node of every tree and a function that draws the
next uniform random numbers ``[B]`` in [0, 1), and returns actions ``[B]``. ``scalar_rule`` names it in the search by
plain loops (:mod:`torchrl_reg.planning.scalar_search`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchrl_reg.functional import e2w_exploration
from torchrl_reg.planning.tree import Nodes

Uniform = Callable[[], Tensor]
Select = Callable[[Nodes, Uniform], Tensor]


@dataclass(frozen=True)
class _Bonus:
    """Base of the rules that add a bonus of width ``c`` to the action values."""

    c: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.c < math.inf:
            raise ValueError(f"c must be a finite number >= 0, got {self.c}.")


@dataclass(frozen=True)
class UCB1(_Bonus):
    r"""The action with the largest :math:`q(a) + c \sqrt{\ln N / n(a)}`; untried ones come first, ties go to the first.

    Of ``q [B, A]``, the current node of every tree.

    Source: Kocsis and Szepesvari 2006 (UCT), with ``c`` as the width in reward units.

    Args:
        c: width of the bonus >= 0, in reward units.

    Raises:
        ValueError: if ``c`` is negative or not finite.
    """

    scalar_rule: ClassVar[str] = "ucb1"
    c: float = math.sqrt(2)

    def __call__(self, nodes: Nodes, uniform: Uniform) -> Tensor:
        visits = nodes.visits
        bonus = (visits.sum(-1, keepdim=True).log() / visits).sqrt()
        return torch.where(visits == 0, math.inf, nodes.q + self.c * bonus).argmax(-1)


@dataclass(frozen=True)
class PUCTRule(_Bonus):
    r"""The action with the largest :math:`q(a) + c \, \rho(a) \sqrt{N + 1} / (n(a) + 1)`; ties go to the first.

    Of ``q [B, A]``. The prior :math:`\rho` is the evaluation's, else uniform. An untried action counts with the value
    of its node, unless the evaluation gave it one.

    Source: Silver et al. 2017 (AlphaGo Zero), as written in the code of Dam et al. 2021.

    Args:
        c: weight of the bonus >= 0, in reward units.

    Raises:
        ValueError: if ``c`` is negative or not finite.
    """

    scalar_rule: ClassVar[str] = "puct"
    c: float = 1.5

    def __call__(self, nodes: Nodes, uniform: Uniform) -> Tensor:
        visits, q = nodes.visits, nodes.q
        if not nodes.known:
            q = torch.where(visits == 0, nodes.value.unsqueeze(-1), q)
        prior = 1 / visits.shape[-1] if nodes.prior is None else nodes.prior
        return (q + self.c * prior * (visits.sum(-1, keepdim=True) + 1).sqrt() / (visits + 1)).argmax(-1)


@dataclass(frozen=True)
class E2W:
    r"""An action from :math:`(1 - \lambda) \pi + \lambda / A`, :math:`\lambda = \min(1, \epsilon A / \ln(N + 1))`.

    :math:`\pi` (``[B, A]``) is the policy that the node's regularizer found at its last backup: the softmax makes it
    E2W as in MENTS, the sparsemax TENTS.

    Source: Xiao et al. 2019 (MENTS); see :func:`torchrl_reg.functional.e2w_policy` for small ``N``.

    Args:
        epsilon: exploration > 0, without unit; well below ``ln(simulations) / A``.

    Raises:
        ValueError: if ``epsilon`` is not a finite number > 0.
    """

    #: Read by :class:`torchrl_reg.planning.Planner`: the rule follows the policy of a regularizer.
    follows_policy: ClassVar[bool] = True
    scalar_rule: ClassVar[str] = "e2w"
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        e2w_exploration(torch.zeros(()), 1, self.epsilon)

    def __call__(self, nodes: Nodes, uniform: Uniform) -> Tensor:
        if nodes.pi is None:
            raise ValueError("E2W needs a backup with a regularizer, whose policy it follows, got averaged returns.")
        num_actions = nodes.pi.shape[-1]
        lam = e2w_exploration(nodes.visits.sum(-1, keepdim=True), num_actions, self.epsilon)
        return drawn(nodes.pi.lerp(lam.new_tensor(1 / num_actions), lam), uniform())


def drawn(pi: Tensor, u: Tensor) -> Tensor:
    """The action ``[B]`` that ``u [B]`` in [0, 1) draws from ``pi [B, A]``: the first with a larger cumulative sum."""
    # Rounding may put u at the very end.
    return (pi.cumsum(-1) <= u.unsqueeze(-1)).sum(-1).clamp(max=pi.shape[-1] - 1)
