"""What a loss claims to compute: said by the user, or guessed from the loss.

A method's name says which target; its numbers are the temperature ``tau`` (reward units), the weight ``alpha`` and the
lower clip ``clip_min`` of the bonus, the discount ``gamma`` and a ``prior`` over actions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from torchrl_reg.regularizers import Entropy, HardMax, PriorKL, Regularizer, Tsallis
from torchrl_reg.regularizers.entropy import Boltzmann
from torchrl_reg.testing.targets import Target


class CheckError(ValueError):
    """A loss that cannot be checked as asked; the message is one sentence."""

    user_error = True


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
    """What the network of ``loss`` represents: as the class declares it, or as the method has it."""
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
    made = made_claim(value, bonus, {**numbers, "double": bool(double)})
    return replace(made, actor=method == "discrete_sac")


def made_claim(value: str, bonus: str, numbers: Mapping[str, Any]) -> Target:
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
    with suppress(Exception):  # what has none by default says so in many ways
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
