"""What a loss should regress to, and what it would with some part of that mistaken.

Shapes: ``N`` rows, ``S`` states, ``A`` actions. All in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Transitions ``[N]`` between numbered states.

    Args:
        s, a, next_s: states, stored actions and next states, int64.
        r: rewards. terminated, truncated: how the episode ends with s', if it does.
        steps: steps between s and s', int64.
    """

    s: Tensor
    a: Tensor
    r: Tensor
    next_s: Tensor
    terminated: Tensor
    truncated: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.s)

    def __getitem__(self, index: Any) -> Rows:
        return Rows(*(value[index] for value in vars(self).values()))


@dataclass(frozen=True)
class Target:
    """``r + bonus + gamma^n (1 - ended) V(s')``, each part as claimed, or as a mistake would have it.

    Args:
        value: ``"max"``, ``"sparsemax"``, or ``"softmax"``: ``sum_a pi (q - cost_weight ln(pi / prior))`` with
            ``pi ~ prior exp(q / tau)``. value_state: ``"next"``, or ``"here"``: that of s.
        tau, cost_weight: temperature and weight of the cost, in reward units.
        prior: probabilities of the actions; empty is the unnormalized measure 1.
        double: the policy at s' is that of the online network. swapped: and the networks are exchanged.
        bonus: ``"none"``, ``"munchausen"``, ``"gap"`` or ``"persistent gap"``.
        bonus_tau, log_weight: temperature of the bonus's policy, and what multiplies its logarithm.
        alpha, clip_min, clips: weight, lower clip, and what is clipped (``"tau ln pi"``, ``"ln pi"``, ``"bonus"``).
        copies, bonus_state, bonus_net, bonus_action: how often, where, by which network, for which action.
        bonus_at_end, reward_at_end: whether they are paid before a terminal state.
        rewards: as they are (``""``), ``"clipped"`` to [-1, 1], or their ``"signs"``.
        next_net: the network at s'. ends: which flag stops the bootstrap. gamma, power: discount and its exponent.
        actor: the policy is an actor's. critics: the ``"min"`` of two, their ``"mean"``, ``"max"``, or the ``"first"``.
    """

    value: str = "max"
    value_state: str = "next"
    tau: float = 0.0
    cost_weight: float = 0.0
    prior: tuple[float, ...] = ()
    double: bool = False
    swapped: bool = False
    bonus: str = "none"
    bonus_tau: float = 0.0
    log_weight: float = 0.0
    alpha: float = 0.0
    clip_min: float = -math.inf
    clips: str = "tau ln pi"
    copies: int = 1
    bonus_state: str = "here"
    bonus_net: str = "target"
    bonus_action: str = "stored"
    bonus_at_end: bool = True
    reward_at_end: bool = True
    rewards: str = ""
    next_net: str = "target"
    ends: str = "terminated"
    gamma: float = 0.9
    power: str = "n"
    actor: bool = False
    critics: str = "min"

    def __call__(self, rows: Rows, values: Values, shift: Tensor | float = 0.0, *, policy_too: bool = False) -> Tensor:
        """Targets ``[N]``; ``shift [S, A]`` is added to the values at s', and with ``policy_too`` to its policy's."""
        online, target, policy, spread, mask = values
        if spread is not None:
            above = {"min": 0 * spread, "mean": spread.abs() / 2, "max": spread.abs(), "first": (-spread).clamp(min=0)}
            target = target + above[self.critics]
        if mask is not None:
            online, target = (q.masked_fill(~mask, -1e30) for q in (online, target))
        nets = {"online": online, "target": target}
        at = rows.next_s if self.value_state == "next" else rows.s
        behind = online if self.double else nets[self.next_net]
        behind = behind if policy is None else self.tau * policy
        q, behind = (nets[self.next_net] + shift)[at], (behind + shift if policy_too else behind)[at]
        value = self.state_value(*((behind, q) if self.swapped else (q, behind)))
        following = self.gamma ** self._exponent(rows.steps) * value
        ended = {"terminated": rows.terminated, "done": rows.terminated | rows.truncated, "never": rows.steps < 0}
        ended |= {"truncated": rows.truncated, "going": ~rows.terminated}
        following = following.masked_fill(ended[self.ends], 0.0)
        bonus = self.copies * self.bonus_of(rows, nets[self.bonus_net])
        paid = {"": rows.r, "clipped": rows.r.clamp(-1, 1), "signs": rows.r.sign()}[self.rewards]
        paid = paid if self.reward_at_end else paid.masked_fill(rows.terminated, 0.0)
        return paid + following + (bonus if self.bonus_at_end else bonus.masked_fill(rows.terminated, 0.0))

    def _exponent(self, steps: Tensor) -> Tensor:
        powers = {"n": steps, "1": torch.ones_like(steps), "n + 1": steps + 1, "n - 1": steps - 1, "0": 0 * steps}
        return powers[self.power]

    def state_value(self, q: Tensor, behind: Tensor) -> Tensor:
        """``V [N]`` of values ``q [N, A]`` under the policy made of the values ``behind [N, A]``."""
        if self.value == "max":
            return _taken(q, behind.argmax(-1))
        if self.value == "tau logsumexp(q)":  # a mistake
            return self.tau * q.logsumexp(-1)
        if self.value == "logsumexp(q / tau)":  # another
            return (q / self.tau).logsumexp(-1)
        if self.value == "sparsemax":
            pi = sparsemax(behind / self.tau)
            return (pi * q).sum(-1) + self.cost_weight / 2 * (1 - pi.square().sum(-1))
        log_prior = torch.tensor(self.prior, dtype=q.dtype).log() if self.prior else torch.zeros_like(q[:1])
        log_pi = (behind / self.tau + log_prior).log_softmax(-1)
        terms = log_pi.exp() * (q - self.cost_weight * (log_pi - log_prior))
        return terms.masked_fill(q < -1e29, 0.0).sum(-1)

    def bonus_of(self, rows: Rows, q: Tensor) -> Tensor:
        """Bonus ``[N]`` of the values ``q [S, A]``."""
        if self.bonus == "none":
            return torch.zeros_like(rows.r)
        here, after = q[rows.s], q[rows.next_s]
        at = here if self.bonus_state == "here" else after
        action = rows.a if self.bonus_action == "stored" else at.argmax(-1)
        if self.bonus != "munchausen":
            gap = at.amax(-1) - _taken(at, action)
            second = torch.where(rows.terminated, gap, after.amax(-1) - _taken(after, action))
            return -self.alpha * (gap if self.bonus == "gap" else torch.minimum(gap, second))
        log_pi = _taken((at / self.bonus_tau).log_softmax(-1), action)
        if self.clips == "ln pi":
            return self.alpha * self.log_weight * log_pi.clamp(min=self.clip_min)
        if self.clips == "bonus":
            return (self.alpha * self.log_weight * log_pi).clamp(min=self.clip_min)
        return self.alpha * (self.log_weight * log_pi).clamp(min=self.clip_min)


class Values(NamedTuple):
    """What the networks say, each ``[S, A]``."""

    online: Tensor
    target: Tensor
    """Of two target critics, the smaller values."""
    policy: Tensor | None = None
    """Logits of an actor; None where the policy is made of the values."""
    spread: Tensor | None = None
    """By how much the second target critic's values exceed the first's, above or below 0."""
    mask: Tensor | None = None
    """Which actions are allowed."""


def sparsemax(x: Tensor) -> Tensor:
    """Euclidean projection ``[N, A]`` of ``x`` onto the simplex (Martins and Astudillo 2016, algorithm 1)."""
    ordered, count = x.sort(-1, descending=True).values, torch.arange(1, x.shape[-1] + 1)
    excess = ordered.cumsum(-1) - 1
    size = (ordered * count > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, size - 1) / size).clamp(min=0.0)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
