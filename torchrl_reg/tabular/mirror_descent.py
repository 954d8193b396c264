"""Mirror-descent value iteration: a KL step to the previous policy and an entropy term.

Shapes: ``S`` states, ``A`` actions.
"""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from torchrl_reg.functional import (
    kl_divergence,
    policy_entropy,
    scaled_log_policy,
    soft_policy,
)
from torchrl_reg.tabular.mdp import TabularMDP
from torchrl_reg.tabular.solution import Iterate, Loop, Solution, iterate


def mirror_descent_value_iteration(mdp: TabularMDP, lam: float, tau: float, **loop: Unpack[Loop]) -> Solution:
    r"""Mirror-descent value iteration, from a uniform :math:`\pi_0`:

    .. math::
        \pi_{k+1} &= \arg\max_\pi \langle \pi, q_k \rangle - \lambda KL(\pi \| \pi_k) + \tau H(\pi)
        \propto \pi_k^{\lambda / (\lambda + \tau)} \exp(q_k / (\lambda + \tau)) \\
        q_{k+1} &= r + \gamma P (\langle \pi_{k+1}, q_k \rangle - \lambda KL(\pi_{k+1} \| \pi_k)
        + \tau H(\pi_{k+1}))

    Its fixed point is that of soft value iteration at temperature ``tau``.

    Source: Vieillard et al. 2020 (Leverage the average).

    Args:
        mdp: the MDP.
        lam: weight >= 0 of the KL term, in reward units.
        tau: temperature >= 0 of the entropy term, in reward units; 0 needs ``num_iterations``,
            unless ``lam`` is 0 too.
        num_iterations, tol, q0, return_iterates, noise: see :class:`~torchrl_reg.tabular.solution.Loop`.

    Returns:
        The solution, values ``[S, A]``; ``tau_log_pi`` is ``(lam + tau) * ln pi``.

    Raises:
        ValueError: if an argument does not fit.
        RuntimeError: if 100000 updates do not converge.
    """
    for name, weight in (("lam", lam), ("tau", tau)):
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {weight}.")
    if lam > 0.0 and tau == 0.0 and loop.get("num_iterations") is None:
        raise ValueError(
            "num_iterations must be set, as tau=0 has no fixed point (ln pi falls without bound), got None."
        )
    temperature = lam + tau
    uniform = torch.full_like(mdp.r, -temperature * math.log(mdp.num_actions))

    def improve(q: Tensor, previous: Iterate | None) -> Iterate:
        # (lam + tau) ln pi_k, scaled so that the hard limit lam = tau = 0 needs no branch.
        scaled_previous = uniform if previous is None else previous.tau_log_pi
        share = lam / temperature if temperature > 0 else 0.0
        score = q + share * scaled_previous
        pi = soft_policy(score, temperature)
        tau_log_pi = scaled_log_policy(score, temperature)
        v = (pi * q).sum(-1) + tau * policy_entropy(pi)
        if lam > 0:
            v = v - lam * kl_divergence(tau_log_pi / temperature, scaled_previous / temperature)
        return Iterate(q, mdp.mask_v(v), pi, tau_log_pi)

    return iterate(mdp, lambda it: mdp.backup(it.v), improve, **loop)
