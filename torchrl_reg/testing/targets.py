"""What a loss should regress to, and what it would with each known mistake: the two are compared with what it does.

Shapes: ``N`` rows, ``S`` states, ``A`` actions. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
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
            ``pi ~ prior exp(q / tau)``.
        tau, cost_weight: temperature and weight of the cost, in reward units.
        prior: probabilities of the actions; empty is the unnormalized measure 1.
        double: the policy at s' is that of the online network.
        bonus: ``"none"``, ``"munchausen"``, ``"gap"`` or ``"persistent gap"``.
        bonus_tau, log_weight: temperature of the bonus's policy, and what multiplies its logarithm.
        alpha, clip_min, clips: weight, lower clip, and what is clipped (``"tau ln pi"``, ``"ln pi"``, ``"bonus"``).
        copies, bonus_state, bonus_net, bonus_action: how often, where, by which network, for which action.
        bonus_at_end: whether it is paid before a terminal state.
        next_net: the network at s'. ends: which flag stops the bootstrap. gamma, power: discount and its exponent.
        actor: the policy is an actor's. critics: the ``"min"`` of two, their ``"mean"``, ``"max"``, or the ``"first"``.
    """

    value: str = "max"
    tau: float = 0.0
    cost_weight: float = 0.0
    prior: tuple[float, ...] = ()
    double: bool = False
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
    next_net: str = "target"
    ends: str = "terminated"
    gamma: float = 0.9
    power: str = "n"
    actor: bool = False
    critics: str = "min"

    def __call__(self, rows: Rows, values: Values) -> Tensor:
        """Targets ``[N]``."""
        online, target, policy, spread, mask = values
        if spread is not None:
            above = {"min": 0 * spread, "mean": spread.abs() / 2, "max": spread.abs(), "first": (-spread).clamp(min=0)}
            target = target + above[self.critics]
        if mask is not None:
            online, target = (q.masked_fill(~mask, -1e30) for q in (online, target))
        nets = {"online": online, "target": target}
        q, behind = nets[self.next_net][rows.next_s], online if self.double else None
        behind = behind if policy is None else self.tau * policy
        value = self.state_value(q, q if behind is None else behind[rows.next_s])
        following = self.gamma ** self._exponent(rows.steps) * value
        ended = {"terminated": rows.terminated, "done": rows.terminated | rows.truncated, "never": rows.steps < 0}
        following = following.masked_fill(ended[self.ends], 0.0)
        bonus = self.copies * self.bonus_of(rows, nets[self.bonus_net])
        return rows.r + following + (bonus if self.bonus_at_end else bonus.masked_fill(rows.terminated, 0.0))

    def _exponent(self, steps: Tensor) -> Tensor:
        powers = {"n": steps, "1": torch.ones_like(steps), "n + 1": steps + 1, "n - 1": steps - 1, "0": 0 * steps}
        return powers[self.power]

    def state_value(self, q: Tensor, behind: Tensor) -> Tensor:
        """``V [N]`` of values ``q [N, A]`` under the policy made of the values ``behind [N, A]``."""
        if self.value == "max":
            return _taken(q, behind.argmax(-1))
        if self.value == "tau logsumexp(q)":  # a mistake
            return self.tau * q.logsumexp(-1)
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


class Mistake(NamedTuple):
    """A known error's name and the parts of a :class:`Target` that it replaces."""

    name: str
    parts: dict[str, Any]


#: Every error that a check can name -> what is wrong there.
KNOWN_ERRORS = {
    "softmax without tau": "the policy is softmax(q), not softmax(q / tau) (as in BY571/Munchausen-RL#2)",
    "tau missing in the TD target": "the soft value pays ln pi, not tau ln pi",
    "max for the soft value": "the bootstrap is max q(s', .), without the regularizer",
    "entropy missing": "the bootstrap is <pi, q>, without the entropy of the policy",
    "sign of the entropy": "the bootstrap is <pi, q + tau ln pi>: the entropy is paid, not earned",
    "double Q-learning missing": "the policy at s' is the target network's, not the online network's as claimed",
    "double Q-learning not claimed": "the policy at s' is the online network's",
    "online for target network": "the bootstrap is read from the online network",
    "minimum of the critics missing": "the bootstrap is the mean, the maximum or the first of the two critics",
    "entropy missing in the actor's loss": "the actor's loss is -<pi, q>",
    "sign of the entropy in the actor's loss": "the actor's loss is <pi, -tau ln pi - q>: it narrows its policy",
    "tau missing in the actor's loss": "the actor's loss is <pi, ln pi - q>",
    "actor's loss turned round": "the actor descends the value that it should ascend",
    "gamma missing": "the bootstrap is not discounted",
    "discount of n steps": "the bootstrap of an n-step transition is not discounted by gamma^n",
    "no bootstrap at truncation": "a truncated episode is taken for a terminated one (done read as terminated)",
    "bootstrap after a terminal state": "what follows a terminal state is worth 0, and is read from the network",
    "bonus missing": "the reward is not shaped",
    "bonus counted twice": "the bonus is added in two places",
    "sign of the bonus": "the bonus is subtracted",
    "bonus of the next state": "the policy of the bonus is that of s', not of s",
    "bonus of the greedy action": "the bonus is that of the greedy action, not of the stored one",
    "bonus from the online network": "the policy of the bonus is the online network's, not the target network's",
    "bonus lost at terminal states": "the bonus belongs to (s, a) and is paid whatever follows",
    "tau missing in the bonus": "the bonus is made of ln pi, not tau ln pi",
    "alpha missing": "the bonus has weight 1",
    "clip missing": "tau ln pi is not clipped from below",
    "clip before tau": "ln pi is clipped, not tau ln pi",
    "clip after alpha": "alpha tau ln pi is clipped, not tau ln pi",
    "clip [l0, 1] instead of [l0, 0]": "tau ln pi is clipped above 0 (as in google-research/google-research#467)",
    "gradient through the target": "the loss has a gradient with respect to the values at s'",
    "bonus not detached": "the loss has a gradient with respect to the other actions at s",
    "sum for mean": "the loss adds up the rows of a batch",
    "mean over pairs of rows": "shapes [B] and [B, 1] were broadcast: each prediction meets the targets of all rows",
    "one-hot action misread": "the loss reads the value of another action where actions are one-hot",
    "greedy action for the stored one": "the prediction is the value of the greedy action",
    "action mask ignored": "forbidden actions at s' count in the bootstrap",
    "padding counts": "rows that ('collector', 'mask') excludes count",
    "wrong state in the lambda-return": "a lambda-return mixes in the value of another state (as in purejaxql#12)",
    "episodes leak": "a lambda-return continues into the next episode",
    "lambda ignored": "the return is the one-step or the Monte Carlo one, whatever lambda",
    "no bootstrap at the end of the data": "the last return of a rollout leaves out the value of what follows",
    "step entropy missing in the lambda-return": "later steps are not charged tau ln pi of their stored action",
}


def mistakes_of(claim: Target) -> list[Mistake]:
    """The known mistakes as changes of ``claim``; those that change no value on some data are not seen there."""
    soft, munchausen = claim.value in ("softmax", "sparsemax"), claim.bonus == "munchausen"
    found = [
        Mistake("online for target network", {"next_net": "online"}),
        Mistake("gamma missing", {"power": "0"}),
        Mistake("no bootstrap at truncation", {"ends": "done"}),
        Mistake("bootstrap after a terminal state", {"ends": "never"}),
        *(Mistake("discount of n steps", {"power": power}) for power in ("1", "n + 1", "n - 1")),
    ]
    if claim.actor:
        found += [Mistake("minimum of the critics missing", {"critics": of}) for of in ("mean", "max", "first")]
    else:
        name = "double Q-learning missing" if claim.double else "double Q-learning not claimed"
        found.append(Mistake(name, {"double": not claim.double}))
    if soft:
        found.append(Mistake("max for the soft value", {"value": "max"}))
    if soft and claim.cost_weight:
        found += [
            Mistake("entropy missing", {"cost_weight": 0.0}),
            Mistake("sign of the entropy", {"cost_weight": -claim.cost_weight}),
            Mistake("tau missing in the TD target", {"cost_weight": 1.0}),
        ]
    made = soft and not claim.actor  # the policy, of values
    raw: list[dict[str, Any]] = [{"tau": 1.0}] * made + [{"bonus_tau": 1.0}] * munchausen
    raw += [raw[0] | raw[1]] if len(raw) == 2 else []
    raw += (
        [{"value": "tau logsumexp(q)"} | part for part in ({}, *raw[1:2])] if made and claim.value == "softmax" else []
    )
    found += [Mistake("softmax without tau", parts) for parts in raw]
    if claim.bonus != "none":
        found += [
            Mistake("bonus missing", {"copies": 0}),
            Mistake("bonus counted twice", {"copies": 2}),
            Mistake("sign of the bonus", {"copies": -1}),
            Mistake("bonus of the next state", {"bonus_state": "next"}),
            Mistake("bonus from the online network", {"bonus_net": "online"}),
            Mistake("bonus lost at terminal states", {"bonus_at_end": False}),
            Mistake("alpha missing", {"alpha": 1.0}),
        ]
    if munchausen:
        found += [
            Mistake("bonus of the greedy action", {"bonus_action": "greedy"}),
            Mistake("tau missing in the bonus", {"log_weight": 1.0}),
            Mistake("clip missing", {"clip_min": -math.inf}),
            Mistake("clip before tau", {"clips": "ln pi"}),
            Mistake("clip after alpha", {"clips": "bonus"}),
        ]
    return found


def hypotheses(claim: Target, mistakes: Sequence[Mistake]) -> Iterator[tuple[tuple[str, ...], Target]]:
    """``claim`` with none, each one and each two of the mistakes: their names, and what the loss would regress to."""
    yield (), claim
    for mistake in mistakes:
        yield (mistake.name,), replace(claim, **mistake.parts)
    for first, second in combinations(mistakes, 2):
        if first.name != second.name and not first.parts.keys() & second.parts.keys():
            yield (first.name, second.name), replace(claim, **first.parts, **second.parts)


def sparsemax(x: Tensor) -> Tensor:
    """Euclidean projection ``[N, A]`` of ``x`` onto the simplex (Martins and Astudillo 2016, algorithm 1)."""
    ordered, count = x.sort(-1, descending=True).values, torch.arange(1, x.shape[-1] + 1)
    excess = ordered.cumsum(-1) - 1
    size = (ordered * count > excess).sum(-1, keepdim=True)
    return (x - excess.gather(-1, size - 1) / size).clamp(min=0.0)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index.unsqueeze(-1)).squeeze(-1)
