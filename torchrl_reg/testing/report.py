"""The mistakes that checks name, and the report of a check."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchrl_reg.testing.targets import Target


class Mistake(NamedTuple):
    """A known error's name and the parts of a :class:`Target` that it replaces."""

    name: str
    parts: dict[str, Any]


#: Every error that a check can name -> what is wrong there.
KNOWN_ERRORS = {
    "softmax without tau": "the policy is softmax(q), not softmax(q / tau) (as in BY571/Munchausen-RL#2)",
    "1 / tau for tau": "the policy is softmax(tau q), as where an inverse temperature is meant",
    "tau missing in the TD target": "the soft value pays ln pi, not tau ln pi, or is logsumexp(q / tau) without tau",
    "max for the soft value": "the bootstrap is max q(s', .), without the regularizer",
    "entropy missing": "the bootstrap is <pi, q>, without the entropy of the policy",
    "sign of the entropy": "the bootstrap is <pi, q + tau ln pi>: the entropy is paid, not earned",
    "double Q-learning missing": "the policy at s' is the target network's, not the online network's as claimed",
    "double Q-learning not claimed": "the policy at s' is the online network's",
    "double Q-learning turned round": "the target network chooses at s', and the online network says what it is worth",
    "online for target network": "the bootstrap is read from the online network",
    "minimum of the critics missing": "the bootstrap is the mean, the maximum or the first of the two critics",
    "entropy missing in the actor's loss": "the actor's loss is -<pi, q>",
    "sign of the entropy in the actor's loss": "the actor's loss is <pi, -tau ln pi - q>: it narrows its policy",
    "tau missing in the actor's loss": "the actor's loss is <pi, ln pi - q>",
    "actor's loss turned round": "the actor descends the value that it should ascend",
    "actor's loss trains the critics": "the actor's loss has a gradient with respect to the critics",
    "critics' loss trains the actor": "the critics' loss has a gradient with respect to the actor",
    "critic left out": "one of the critics gets no gradient from any loss",
    "policy per quantile": "each quantile at s' has a policy of its own, instead of that of the mean over quantiles",
    "fractions on the target's axis": "the quantile loss weighs by the fractions of the target, not of the prediction",
    "fractions turned round": "the quantile loss weighs overestimates by the fraction, as it should underestimates",
    "fractions ignored": "the quantile loss weighs all quantiles alike, so that all become the same",
    "mass lost on the grid": "atoms that land exactly on the grid, where floor and ceil are one, lose their mass",
    "overflow of large values": "exp(q / tau) overflows or underflows, as log(sum(exp)) and log(softmax) do",
    "entropy not claimed": "the bootstrap is the soft value, where that of the policy alone is claimed",
    "prior missing or uniform": "the soft value is that of no prior, or of a uniform one, where another is claimed",
    "bootstrap from the state before": "the value is that of s, not of s'",
    "gamma missing": "the bootstrap is not discounted",
    "discount of n steps": "the bootstrap of an n-step transition is not discounted by gamma^n",
    "no bootstrap at truncation": "a truncated episode is taken for a terminated one (done read as terminated)",
    "truncated for terminated": "the flag truncated stops the bootstrap, and terminated does not",
    "mask of ends turned round": "the bootstrap follows terminal states, and no others",
    "reward lost at terminal states": "the last reward of an episode is masked along with what follows it",
    "rewards clipped": "rewards are clipped to [-1, 1], or replaced by their signs, inside the loss",
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
    "no gradient of large errors": "the TD error is clipped before it is squared, not its gradient",
    "priority weights ignored": "the weights of a prioritized sample do not count",
    "priority weights squared": "the weights of a prioritized sample count twice",
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
        Mistake("truncated for terminated", {"ends": "truncated"}),
        Mistake("mask of ends turned round", {"ends": "going"}),
        Mistake("reward lost at terminal states", {"reward_at_end": False}),
        *(Mistake("rewards clipped", {"rewards": how}) for how in ("clipped", "signs")),
        Mistake("bootstrap from the state before", {"value_state": "here"}),
        *(Mistake("discount of n steps", {"power": power}) for power in ("1", "n + 1", "n - 1")),
    ]
    if claim.actor:
        found += [Mistake("minimum of the critics missing", {"critics": of}) for of in ("mean", "max", "first")]
    else:
        name = "double Q-learning missing" if claim.double else "double Q-learning not claimed"
        found.append(Mistake(name, {"double": not claim.double}))
        found += [Mistake("double Q-learning turned round", {"swapped": True})] * claim.double
    if soft:
        found.append(Mistake("max for the soft value", {"value": "max"}))
    if soft and claim.cost_weight:
        found += [
            Mistake("entropy missing", {"cost_weight": 0.0}),
            Mistake("sign of the entropy", {"cost_weight": -claim.cost_weight}),
            Mistake("tau missing in the TD target", {"cost_weight": 1.0}),
        ]
    if claim.value == "softmax" and not claim.actor:
        found += _of_soft_values(claim)
    from_values = soft and not claim.actor  # the policy, of values
    raw: list[dict[str, Any]] = [{"tau": 1.0}] * from_values + [{"bonus_tau": 1.0}] * munchausen
    raw += [raw[0] | raw[1]] if len(raw) == 2 else []
    raw += (
        [{"value": "tau logsumexp(q)"} | part for part in ({}, *raw[1:2])]
        if from_values and claim.value == "softmax"
        else []
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


def _of_soft_values(claim: Target) -> list[Mistake]:
    uniform, inverse = (1 / 3,) * 3, 1 / claim.tau
    if not claim.cost_weight:
        found = [Mistake("entropy not claimed", {"cost_weight": claim.tau})]
    else:
        priors = [prior for prior in ((), uniform) if prior != claim.prior]
        found = [Mistake("prior missing or uniform", {"prior": prior}) for prior in priors]
    if claim.cost_weight and not claim.prior:
        found.append(Mistake("tau missing in the TD target", {"value": "logsumexp(q / tau)"}))
    values: list[dict[str, Any]] = [{"tau": inverse}]
    values += [{"tau": inverse, "cost_weight": inverse}] * bool(claim.cost_weight)
    bonuses = [{"bonus_tau": inverse}, {"bonus_tau": inverse, "log_weight": inverse}]
    both = [value | bonus for value in values for bonus in bonuses]
    parts = values + both * (claim.bonus == "munchausen")
    return found + [Mistake("1 / tau for tau", part) for part in parts]


def hypotheses(claim: Target, mistakes: Sequence[Mistake]) -> Iterator[tuple[tuple[str, ...], Target]]:
    """``claim`` with none, each one and each two of the mistakes: their names, and what the loss would regress to."""
    yield (), claim
    for mistake in mistakes:
        yield (mistake.name,), replace(claim, **mistake.parts)
    for first, second in combinations(mistakes, 2):
        if first.name != second.name and not first.parts.keys() & second.parts.keys():
            yield (first.name, second.name), replace(claim, **first.parts, **second.parts)


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Args:
        name: what.
        status: ``"pass"``, ``"fail"`` or ``"n/a"``.
        expected, got: the numbers compared, where they differ most.
        errors: names of known errors, of :data:`KNOWN_ERRORS`.
        note: where the numbers are from, or why it was not tried.
    """

    name: str
    status: str
    expected: float | None = None
    got: float | None = None
    errors: tuple[str, ...] = ()
    note: str = ""


def compared(
    name: str,
    expected: Tensor,
    got: Tensor,
    errors: Sequence[str] = (),
    note: str = "",
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> Check:
    """Passes if two tensors are equal to ``rtol`` and ``atol``; has the numbers where they differ most."""
    expected, got = expected.detach().double().flatten(), got.detach().double().flatten()
    worst, right = int((expected - got).abs().argmax()), torch.allclose(expected, got, rtol=rtol, atol=atol)
    numbers = expected[worst].item(), got[worst].item()
    return Check(name, "pass", *numbers) if right else Check(name, "fail", *numbers, tuple(errors), note)


def raised(error: Exception) -> str:
    """``raises ...``, in one line."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    said = (str(error).strip() or repr(error)).splitlines()[0]
    return f"raises {type(error).__name__}: {said[:80]}"


def tried(name: str) -> Callable[[Callable[..., Check]], Callable[..., Check]]:
    """Of a check that a stranger's loss may answer with any exception: that is not applicable."""

    def decorated(check: Callable[..., Check]) -> Callable[..., Check]:
        @functools.wraps(check)
        def safe(*args: Any, **kwargs: Any) -> Check:
            try:
                return check(*args, **kwargs)
            except Exception as error:
                return Check(name, "n/a", note=raised(error))

        return safe

    return decorated


@dataclass
class Report:
    """All checks of one loss.

    Args:
        loss: its name. claim: what it was held to, in words. checks: in the order they were made.
    """

    loss: str
    claim: str
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def errors(self) -> list[str]:
        """Names of the known errors that were seen, each once."""
        return list(dict.fromkeys(name for check in self.checks for name in check.errors))

    def as_dict(self) -> dict[str, object]:
        """All of it, for JSON, which has no NaN: None."""
        checks = [
            {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in vars(check).items()}
            for check in self.checks
        ]
        return {"loss": self.loss, "claim": self.claim, "passed": self.passed, "errors": self.errors, "checks": checks}

    def rows(self) -> list[tuple[str, ...]]:
        """The checks as text: name, status, expected, got, and the errors or the note."""

        def number(value: float | None) -> str:
            return "" if value is None else f"{value:.6g}"

        return [
            (c.name, c.status, number(c.expected), number(c.got), _one_line("; ".join([*c.errors, c.note]).strip("; ")))
            for c in self.checks
        ]

    def summary(self) -> str:
        """Counts of checks by status, and the meaning of each error found."""
        counts = [f"{sum(c.status == status for c in self.checks)} {status}" for status in ("pass", "fail", "n/a")]
        lines = [", ".join(counts), *(f"{name}: {KNOWN_ERRORS[name]}." for name in self.errors)]
        if not self.passed and not self.errors:
            lines.append("No known errors, alone or two together, explain these numbers.")
        return "\n".join(lines)

    def __str__(self) -> str:
        table = [("check", "status", "expected", "got", "known error, or note"), *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(4)] + [0]
        lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([f"{self.loss} as {self.claim}", *(line.rstrip() for line in lines), self.summary()])


def _one_line(text: str) -> str:
    # An error message of the loss under test may hold terminal control codes.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
