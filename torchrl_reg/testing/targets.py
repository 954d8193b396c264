"""The claim of a loss, its targets written out, and distances from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchrl_reg.regularizers import Entropy, HardMax, PriorKL, Regularizer, Tsallis
from torchrl_reg.regularizers.policies import Boltzmann


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
        """``V [N]`` of values ``q [N, A]`` under the policy of the values ``behind [N, A]``."""
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
    """Outputs of the networks, each ``[S, A]``."""

    online: Tensor
    target: Tensor
    """Of two target critics, the smaller values."""
    policy: Tensor | None = None
    """Logits of an actor; None where the policy comes from the values."""
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


@dataclass(frozen=True)
class Distance:
    """A function of the error: ``scale`` times the one called ``name``."""

    name: str
    scale: float
    of: Callable[[Tensor], Tensor]

    def __call__(self, error: Tensor) -> Tensor:
        """Losses, of the shape of ``error``."""
        return self.scale * self.of(error)


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """Squares up to ``delta``, and lines beyond it."""
    size = error.abs()
    return torch.where(size < delta, size.square() / 2, delta * (size - delta / 2))


def log_cosh(error: Tensor) -> Tensor:
    """``ln cosh``, which does not overflow."""
    return error.abs() + torch.nn.functional.softplus(-2 * error.abs()) - math.log(2)


def clipped(error: Tensor) -> Tensor:
    """Squares of errors that are clipped to [-1, 1]: a known mistake, which has no gradient beyond them."""
    return error.clamp(-1, 1).square()


def fitted(error: Tensor, loss: Tensor, slope: Tensor, tol: float) -> Distance | None:
    """The distance that gives ``loss [N]`` at ``error [N]``; ``slope [N]`` is the gradient, which shows delta."""
    for name, of in _candidates(error, loss, slope):
        unit = of(error)
        scale = (loss.sum() / unit.sum()).item()
        if 1e-9 < scale < math.inf and ((loss - scale * unit).abs() <= tol * (scale * unit + scale)).all():
            return Distance(name, scale, of)
    return None


def _candidates(error: Tensor, loss: Tensor, slope: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield from (("squared", torch.square), ("huber", huber), ("absolute", torch.abs))
    largest = int(error.abs().argmax())
    delta = 2 * (error.abs() - loss / slope.abs())[largest].item()  # where it is a line, loss / slope = |d| - delta / 2
    if 0 < delta < math.inf:
        yield "huber", partial(huber, delta=delta)
    yield from (("log cosh", log_cosh), ("clipped", clipped))


class CheckError(ValueError):
    """A loss that cannot be checked as asked; the message is one sentence."""


#: Method -> (value, bonus, head): the parts of the target, and what the network represents.
METHODS = {
    "dqn": ("max", "none", "expected"),
    "double_dqn": ("max", "none", "expected"),
    "soft_dqn": ("entropy", "none", "expected"),
    "m_dqn": ("entropy", "munchausen", "expected"),
    "al": ("max", "gap", "expected"),
    "pal": ("max", "persistent gap", "expected"),
    "sparse_dqn": ("sparsemax", "none", "expected"),
    "sql": ("prior", "none", "expected"),
    "virel": ("boltzmann", "none", "expected"),
    "c51": ("max", "none", "categorical"),
    "m_c51": ("entropy", "munchausen", "categorical"),
    "qr_dqn": ("max", "none", "quantiles"),
    "iqn": ("max", "none", "implicit"),
    "m_iqn": ("entropy", "munchausen", "implicit"),
    "discrete_sac": ("entropy", "none", "actor"),
}
#: Part of a class's name, in lower case -> the method it is taken for; the first that fits.
_NAMED = {
    "discretesac": "discrete_sac",
    **{"munchauseniqn": "m_iqn", "miqn": "m_iqn", "munchausencategorical": "m_c51", "munchausen": "m_dqn"},
    **{"mdqn": "m_dqn", "m_dqn": "m_dqn", "iqn": "iqn", "quantile": "qr_dqn", "qrdqn": "qr_dqn"},
    **{"distributionaldqn": "c51", "categoricaldqn": "c51", "c51": "c51", "sparse": "sparse_dqn"},
    **{"persistentadvantage": "pal", "advantagelearning": "al", "soft": "soft_dqn", "double": "double_dqn"},
    **{"dqn": "dqn", "qlearning": "dqn"},
}
_HEADS = {
    **{"Categorical": "categorical", "FixedQuantiles": "quantiles", "ImplicitQuantiles": "implicit"},
    "ExpectedValue": "expected",
}


def guessed_method(loss: Any) -> str | None:
    """The method that a class or factory is named after, if any."""
    names = [cls.__name__ for cls in getattr(loss, "__mro__", ())] or [getattr(loss, "__name__", "")]
    for name in names:
        for part, method in _NAMED.items():
            if part in name.lower():
                return method
    return None


def guessed_head(loss: Any, method: str | None) -> str:
    """The head of ``loss``: as the class declares it, or as the method has it."""
    declared = getattr(getattr(loss, "head_type", None), "__name__", None)
    return _HEADS.get(declared or "") or METHODS[method or "dqn"][2]


def check_one_of(name: str, value: str | None, known: Iterable[str]) -> None:
    """Raises a CheckError unless ``value`` is None or ``known``."""
    known = list(dict.fromkeys(known))
    if value is not None and value not in known:
        raise CheckError(f"{name} must be one of {', '.join(known)}, got {value!r}.")


def claim_of(loss: nn.Module, method: str | None, named: str | None, given: Mapping[str, Any]) -> Target:
    """The target that ``loss`` claims: that of the method, of its slots, or of the method that it is named after.

    With the numbers ``given``, those it holds, or its constructor's defaults.
    """
    numbers = {name: value for name, value in given.items() if value is not None}
    shaping, regularizer = getattr(loss, "shaping", None), getattr(loss, "regularizer", None)
    if method is None and isinstance(regularizer, Regularizer):
        value, bonus = _of_slots(regularizer, shaping)
    else:
        method = method or guessed_method(type(loss)) or named
        if method is None:
            raise CheckError(f"method must be given, one of {', '.join(METHODS)}, got a {type(loss).__name__}.")
        value, bonus, _ = METHODS[method]
    numbers = _held(loss, ("tau", "alpha", "clip_min", "gamma"), numbers)
    if value == "prior" and isinstance(regularizer, PriorKL) and regularizer.prior is not None:
        numbers.setdefault("prior", tuple(regularizer.prior.log_prior.double().exp().tolist()))
    double = numbers.get("double", getattr(loss, "double_dqn", False) or _is_double(loss) or method == "double_dqn")
    claim = as_claim(value, bonus, {**numbers, "double": bool(double)})
    return replace(claim, actor=method == "discrete_sac")


def as_claim(value: str, bonus: str, numbers: Mapping[str, Any]) -> Target:
    """The claim of these parts with these numbers.

    Raises:
        CheckError: a number that the parts need is missing.
    """
    needed = ["gamma"] + ["tau"] * (value != "max") + ["alpha"] * (bonus != "none")
    for name in needed:
        if name not in numbers:
            raise CheckError(f"{name} must be given for this method, got none.")
    if not 0 <= float(numbers["gamma"]) < 1:
        raise CheckError(f"gamma must be in [0, 1), got {numbers['gamma']}.")
    claim = Target(gamma=float(numbers["gamma"]), double=bool(numbers.get("double", False)), bonus=bonus)
    if value != "max":
        tau = float(numbers["tau"])
        if not 0 < tau < math.inf:
            raise CheckError(f"tau must be a finite temperature > 0, got {tau}.")
        weight, kind = 0.0 if value == "boltzmann" else tau, value if value == "sparsemax" else "softmax"
        prior = tuple(numbers.get("prior") or (1 / 3,) * 3) if value == "prior" else ()
        claim = replace(claim, value=kind, tau=tau, cost_weight=weight, prior=prior)
    if bonus != "none":
        clip = numbers.get("clip_min")
        low = -math.inf if clip is None or bonus != "munchausen" else float(clip)
        claim = replace(claim, alpha=float(numbers["alpha"]), clip_min=low, bonus_tau=claim.tau, log_weight=claim.tau)
    return claim


def _of_slots(regularizer: Regularizer, shaping: Any) -> tuple[str, str]:
    kinds = {HardMax: "max", Entropy: "entropy", Boltzmann: "boltzmann", Tsallis: "sparsemax", PriorKL: "prior"}
    value = kinds.get(type(regularizer))
    gap = "persistent gap" if getattr(shaping, "persistent", False) else "gap"
    bonus = {"NoneType": "none", "Munchausen": "munchausen", "AdvantageGap": gap}.get(type(shaping).__name__)
    if value is None or bonus is None or (bonus == "munchausen" and value != "entropy"):
        parts = f"{type(regularizer).__name__} with {type(shaping).__name__}"
        raise CheckError(f"method must be given for a loss of other parts than those of the methods, got {parts}.")
    return value, bonus


def _held(loss: nn.Module, names: tuple[str, ...], numbers: dict[str, Any]) -> dict[str, Any]:
    """``numbers`` with those that the loss, its regularizer or its value estimator hold, or its defaults."""
    estimator = None
    with suppress(Exception):  # losses without a default estimator raise in many ways
        estimator = loss.value_estimator
    places = [loss, getattr(loss, "regularizer", None), estimator]
    defaults = inspect.signature(type(loss).__init__).parameters
    found = dict(numbers)
    for name in names:
        held = [getattr(place, name, None) for place in places]
        held += [defaults[name].default] if name in defaults else []
        for value in held:
            if name not in found and _number(value) is not None:
                found[name] = _number(value)
    beta, log_alpha = _number(getattr(loss, "beta", None)), _number(getattr(loss, "log_alpha", None))
    if beta is not None:
        found.setdefault("tau", 1 / beta)
    if log_alpha is not None:
        found.setdefault("tau", math.exp(log_alpha))
    return found


def _number(value: Any) -> float | None:
    if value is inspect.Parameter.empty or isinstance(value, bool | str):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _is_double(loss: nn.Module) -> bool:
    return any(cls.__name__ == "DistributionalDQNLoss" for cls in type(loss).__mro__)
