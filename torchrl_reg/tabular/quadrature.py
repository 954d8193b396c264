"""Soft Q-iteration over a box of actions, exact to quadrature: the oracle of the sampled soft value.

Shapes: ``S`` states, ``N`` nodes, ``D`` action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from torchrl_reg.tabular.dynamic_programming import Loop, Solution, iterate, soft_iterate
from torchrl_reg.tabular.mdp import TabularMDP


@dataclass(frozen=True, eq=False)
class Quadrature:
    r"""Nodes and weights with :math:`\sum_n w_n f(a_n) \approx \int_{[-1, 1]^D} f(a) da`.

    Args:
        nodes: points of the box ``[N, D]``, without unit.
        weights: positive, of sum ``2^D`` ``[N]``.

    Example:
        >>> rule = gauss_legendre(3)
        >>> round((rule.weights * rule.nodes.squeeze(-1) ** 4).sum().item(), 12)  # 2 / 5
        0.4
    """

    nodes: Tensor
    weights: Tensor


def gauss_legendre(num_points: int, dims: int = 1) -> Quadrature:
    """Gauss-Legendre rule, exact for polynomials of degree ``2 num_points - 1`` in each dimension.

    Source: Golub and Welsch 1969 (eigenvalues of the Jacobi matrix).

    Args:
        num_points: nodes per dimension.
        dims: dimensions D; there are ``N = num_points^D`` nodes.

    Returns:
        Nodes ``[N, D]`` and weights ``[N]``, without unit.

    Raises:
        ValueError: if one of them is below 1.
    """
    if num_points < 1 or dims < 1:
        raise ValueError(f"num_points and dims must be >= 1, got {num_points} and {dims}.")
    k = torch.arange(1, num_points, dtype=torch.float64)
    off_diagonal = k / (4 * k.square() - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    weights = 2 * vectors[0].square()
    grid = torch.cartesian_prod(*[nodes] * dims).reshape(-1, dims)
    return Quadrature(grid, torch.cartesian_prod(*[weights] * dims).reshape(-1, dims).prod(-1))


def continuous_soft_q_iteration(mdp: TabularMDP, weights: Tensor, tau: float, **loop: Unpack[Loop]) -> Solution:
    r"""Soft Q-iteration :math:`Q \leftarrow r + \gamma P V`, with :math:`V = \tau \ln \int \exp(Q(s, a) / \tau) da`.

    The actions of ``mdp`` are the nodes of a quadrature over the box, so the sum over them stands for the integral. A
    contraction with modulus ``gamma``, as with finitely many actions. ``pi`` are the probabilities of the nodes: the
    density times the weights.

    Source: Haarnoja et al. 2017, eq. (5) and (6) (theorem 3).

    Args:
        mdp: the MDP, its actions in the order of the nodes.
        weights: weights of the nodes ``[N]``, see :func:`gauss_legendre`.
        tau: temperature > 0, in reward units.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.dynamic_programming.Loop`.

    Returns:
        The solution.

    Raises:
        ValueError: if ``weights`` or ``tau`` is not positive or has another shape, or another argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    weights = torch.as_tensor(weights).to(mdp.r)
    if weights.shape != mdp.r.shape[1:] or not (weights > 0).all():
        raise ValueError(f"weights must be positive of shape [N] = {list(mdp.r.shape[1:])}, got {weights.tolist()}.")
    if not tau > 0.0:
        raise ValueError(f"tau must be > 0, got {tau}.")
    return iterate(
        mdp, lambda current: mdp.backup(current.v), lambda q, _: soft_iterate(mdp, q, tau, weights.log()), **loop
    )
