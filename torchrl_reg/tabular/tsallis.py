"""Value iteration with the Tsallis entropy: the sparse MDP and its relatives.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.solution import Iterate, Loop, Solution, iterate

_HALVINGS = 60  # past the last bit of float64


def tsallis_value_iteration(mdp: TabularMDP, tau: float, *, index: float = 2.0, **loop: Unpack[Loop]) -> Solution:
    r"""Value iteration :math:`q \leftarrow r + \gamma P \max_\pi (\langle \pi, q \rangle - \Omega(\pi))`.

    :math:`\Omega(\pi) = \tau (\sum_a \pi(a)^{index} - 1) / (index (index - 1))`; ``index=2`` is the sparse MDP, whose
    policy is the sparsemax of ``q / tau``. A contraction with modulus ``gamma``, with ``0 <= v_tau - v* <= tau
    (1 - A^(1 - index)) / (index (index - 1) (1 - gamma))``. The threshold of each policy is found by bisection at
    any index: an oracle for the closed form of :class:`~torchrl_reg.regularizers.Tsallis`.

    Source: Lee, Choi, Oh, "Sparse Markov Decision Processes with Causal Sparse Tsallis Entropy Regularization", RA-L
    2018 (index 2); Martins and Astudillo, ICML 2016.

    Args:
        mdp: the MDP.
        tau: temperature > 0, in reward units.
        index: entropic index > 1.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution; ``tau_log_pi [S, A]`` is the deformed logarithm, finite, with ``<pi, tau_log_pi> = Omega``.

    Raises:
        ValueError: if ``tau`` is not > 0, ``index`` not > 1, or another argument does not fit.
        RuntimeError: if 100000 updates do not converge.

    >>> from torchrl_reg.tabular import random_mdp
    >>> solution = tsallis_value_iteration(random_mdp(5, 4, 0.9, seed=0), 0.05)
    >>> bool((solution.pi == 0).any())
    True
    """
    if not 0.0 < tau < math.inf:
        raise ValueError(f"tau must be a finite temperature > 0, got {tau!r}.")
    if not 1.0 < index < math.inf:
        raise ValueError(f"index must be a finite number > 1, got {index!r}.")
    return iterate(
        mdp, lambda current: mdp.backup(current.v), lambda q, _: _tsallis_iterate(mdp, q, tau, index), **loop
    )


def _tsallis_iterate(mdp: TabularMDP, q: Tensor, tau: float, index: float) -> Iterate:
    pi = _policy(q / tau, index)
    omega = tau * (pi.pow(index).sum(-1) - 1) / (index * (index - 1))
    gradient = tau * pi.pow(index - 1) / (index - 1)
    tau_log_pi = gradient - (pi * gradient).sum(-1, keepdim=True) + omega.unsqueeze(-1)
    return Iterate(q=q, v=mdp.mask_v((pi * q).sum(-1) - omega), pi=pi, tau_log_pi=tau_log_pi)


def _policy(x: Tensor, index: float) -> Tensor:
    """``[(index - 1) (x - c)]_+^{1 / (index - 1)}`` ``[S, A]`` with the ``c [S, 1]`` at which it sums to 1."""
    height = (index - 1) * (x - x.amax(-1, keepdim=True))
    low = torch.full_like(height[..., :1], -1.0)  # the best action alone has probability 1
    high = torch.zeros_like(low)  # none has any
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = _powered(height - middle, index).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    pi = _powered(height - (low + high) / 2, index)
    return pi / pi.sum(-1, keepdim=True)


def _powered(height: Tensor, index: float) -> Tensor:
    return height.clamp(min=0).pow(1 / (index - 1))
