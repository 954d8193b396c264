"""Holds a loss to its claim."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchrl_reg.testing import checks, variants
from torchrl_reg.testing.checks import Case
from torchrl_reg.testing.distributions import on_the_grid_check, quantiles_check
from torchrl_reg.testing.lambda_returns import lambda_check
from torchrl_reg.testing.probe import Probe, built, gradients, networks, seeded
from torchrl_reg.testing.report import Check, Report, compared
from torchrl_reg.testing.targets import (
    METHODS,
    CheckError,
    Target,
    Values,
    check_one_of,
    claim_of,
    guessed_head,
    guessed_method,
)

#: Error -> the factors of ``<pi, ln pi>`` and of ``<pi, q>`` in the loss that has it, given tau; "" has none.
_LOSSES: dict[str, Callable[[float], tuple[float, float]]] = {
    "": lambda tau: (tau, -1.0),
    "entropy missing in the actor's loss": lambda tau: (0.0, -1.0),
    "sign of the entropy in the actor's loss": lambda tau: (-tau, -1.0),
    "tau missing in the actor's loss": lambda tau: (1.0, -1.0),
    "actor's loss turned round": lambda tau: (-tau, 1.0),
}


def actor_check(case: Case) -> Check:
    """The gradient of ``loss_actor`` with respect to the logits, against that of each of the losses above."""
    probe, name = case.probe, "actor's gradient"
    out = probe.loss(probe.data(case.rows))
    if "loss_actor" not in list(out.keys()):
        return Check(name, "n/a", note="returns no loss_actor")
    if any(g.abs().max() > 1e-9 for g in gradients(out["loss_actor"].sum(), probe.online)):
        return Check(name, "fail", note="it reaches the critics", errors=("actor's loss trains the critics",))
    got = torch.stack(gradients(out["loss_actor"].sum(), probe.logits)).sum(0).double()
    gradients_of = {error: _gradient(case, *factors(case.claim.tau)) for error, factors in _LOSSES.items()}
    found = [error for error, gradient in gradients_of.items() if torch.allclose(got, gradient, rtol=1e-4, atol=1e-6)]
    return compared(name, gradients_of[""], got, found[:1])


def critics_check(case: Case) -> Check:
    """Each critic gets a gradient from some loss, and the actor none from a critic's."""
    name, probe = "critics' gradient", case.probe
    out = probe.loss(probe.data(case.rows))
    names = [str(entry) for entry in (out.keys() if hasattr(out, "keys") else ())]
    of_critics = [
        out[n].sum() for n in names if n.startswith("loss") and not n.startswith(("loss_actor", "loss_alpha"))
    ]
    if not of_critics:
        return Check(name, "n/a", note="returns no losses by name")
    total = torch.stack(of_critics).sum()
    critics = torch.cat([g.reshape(-1, *g.shape[-2:]) for g in gradients(total, probe.online)])
    trained = int((critics.abs().amax((-2, -1)) > 0).sum())
    errors = ["critic left out"] * (trained < len(critics))
    split = "loss_actor" in names  # else one loss has both
    errors += ["critics' loss trains the actor"] * (split and any(g.any() for g in gradients(total, probe.logits)))
    status = "fail" if errors else "pass"
    return Check(name, status, len(critics), trained, tuple(errors), "critics that get a gradient")


def _gradient(case: Case, of_log_pi: float, of_q: float) -> Tensor:
    assert case.values.policy is not None
    logits, states = case.values.policy.clone().requires_grad_(), case.rows.s
    log_pi = logits[states].log_softmax(-1)
    loss = (log_pi.exp() * (of_log_pi * log_pi + of_q * case.values.online[states])).sum(-1).mean()
    return torch.autograd.grad(loss, logits)[0]


def check_loss(
    loss_or_factory: Callable[..., Any],
    *,
    method: str | None = None,
    head: str | None = None,
    tau: float | None = None,
    alpha: float | None = None,
    clip_min: float | None = None,
    gamma: float | None = None,
    double: bool | None = None,
    prior: Sequence[float] | None = None,
    n_steps: int = 1,
    lmbda: float = 0.7,
    action_space: str = "categorical",
    masks: bool = False,
    weights: bool = False,
    compile: bool = False,
) -> Report:
    """Hold a loss to the target ``y = r + bonus + gamma^n (1 - terminated) V(s')`` that it claims, and name its errors.

    The loss is built over a table of values ``[S, A]``, in float64, and read one transition at a time: its values and
    gradients are compared with those of ``y`` and of ``y`` with each known mistake, and each two.

    Args:
        loss_or_factory: a LossModule class, which is called with a :class:`~torchrl.modules.QValueActor` and those of
            the numbers below that its constructor takes, or a function of the network that returns the loss.
        method: what it claims to be, one of :data:`METHODS`; guessed from the loss's parts or name where None.
        head: what the network represents: ``"expected"``, ``"categorical"``, ``"quantiles"``, ``"implicit"`` or, beside
            an ``"actor"``, critics.
        tau, alpha, clip_min, gamma: numbers of the method (tau and clip_min in reward units); read from the loss where
            None. A class is built with ``gamma=0.9`` where None.
        double: whether it claims Double Q-learning. prior: probabilities of the actions, of ``"sql"``.
        n_steps: the loss itself discounts by ``gamma^n_steps``.
        lmbda: trace parameter, where it takes TD(lambda).
        action_space: ``"categorical"`` or ``"one-hot"``: the actions it takes.
        masks: it claims to honour action masks and padding. weights: and ``priority_weight``, as losses with an option
            ``use_prioritized_weights`` do. compile: try ``torch.compile`` too.

    Returns:
        The report: print it, or read ``report.passed``, ``report.errors`` and ``report.checks``.

    Raises:
        CheckError: the loss cannot be built or read, or it is not known what it claims.

    Source: ours; the errors and where they were published stand in :data:`KNOWN_ERRORS`.

    >>> from torchrl_reg.objectives import MunchausenDQNLoss
    >>> check_loss(MunchausenDQNLoss, tau=0.5, alpha=0.5, clip_min=-0.3).passed
    True
    """
    check_one_of("method", method, METHODS)
    check_one_of("head", head, (of for *_, of in METHODS.values()))
    check_one_of("action_space", action_space, ("categorical", "one-hot"))
    if n_steps < 1 or not 0 <= lmbda <= 1:
        raise CheckError(f"n_steps must be >= 1 and lmbda in [0, 1], got {n_steps} and {lmbda}.")
    if not callable(loss_or_factory) or isinstance(loss_or_factory, nn.Module):
        kinds = "a LossModule class or a function that takes the network and returns the loss"
        raise CheckError(f"loss_or_factory must be {kinds}, got a {type(loss_or_factory).__name__}.")
    is_class = inspect.isclass(loss_or_factory)
    named = method or guessed_method(loss_or_factory)
    head = head or (METHODS[method][2] if method else guessed_head(loss_or_factory, named))
    if method and METHODS[method][2] == "expected" and is_class:
        head = guessed_head(loss_or_factory, method)
    given: dict[str, Any] = {
        "tau": tau,
        "alpha": alpha,
        "clip_min": clip_min,
        "gamma": 0.9 if gamma is None and is_class else gamma,
    }
    given |= {"double": double, "persistent": True if method == "pal" else None, "prior": prior}
    make = partial(_probe, loss_or_factory, head, given, action_space == "one-hot")
    with seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stranger's
        probe = _in_double_if_possible(make)
        claim = claim_of(probe.loss, method, named, given)
        report = Report(getattr(loss_or_factory, "__name__", "loss"), _in_words(claim, head, n_steps))
        case = checks.explained(checks.case_of(probe, claim, n_step=_reads_steps(probe), steps=n_steps))
        report.checks += _checks(case, partial(_again, make, probe), lmbda, masks, weights, compile)
    return report


def _checks(
    case: Case, rebuild: Callable[..., Probe], lmbda: float, masks: bool, weights: bool, compiles: bool
) -> Iterator[Check]:
    yield from checks.target_checks(case)
    yield checks.fixed_point_check(case)
    yield from checks.trace_checks(case)
    yield checks.gradient_check(case)
    if case.claim.actor:
        yield actor_check(case)
        yield critics_check(case)
    if case.probe.head in ("quantiles", "implicit"):
        yield quantiles_check(case)
    if case.probe.head == "categorical":
        yield on_the_grid_check(case)
    yield variants.large_values_check(case, rebuild)
    yield from checks.batch_checks(case)
    yield variants.dtype_check(case, rebuild)
    if not case.probe.one_hot:
        yield variants.one_hot_check(case, rebuild)
    yield variants.action_mask_check(case, rebuild, claimed=masks)
    yield variants.padding_check(case, claimed=masks)
    yield variants.weights_check(case, claimed=weights)
    yield variants.vmap_check(case)
    yield variants.compile_check(case, wanted=compiles)
    yield lambda_check(rebuild(), case, lmbda)


def imported(path: str) -> Any:
    """The object at ``"package.module:name"``, also below the working directory.

    Raises:
        CheckError: no such module or name.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise CheckError(f"LOSS must be written my_module:MyLoss, got {path!r}.")
    here = str(Path.cwd())
    sys.path[:0] = [] if here in sys.path else [here]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacks = str(error.name)
        why = "is not here" if f"{module}.".startswith(f"{lacks}.") else f"needs {lacks}"
        raise CheckError(f"LOSS must name a module that can be imported, got {module!r}, which {why}.") from None
    except Exception as error:
        why = f"raises {type(error).__name__}: {error}".splitlines()[0]
        raise CheckError(f"LOSS must name a module that can be imported, got {module!r}, which {why}.") from error
    if not hasattr(found, name):
        raise CheckError(f"LOSS must name something in {module}, got {name!r}, which it does not define.")
    return getattr(found, name)


def _probe(
    loss: Any, head: str, given: dict[str, Any], only_one_hot: bool, *, dtype: torch.dtype, one_hot: bool = False,
    masked: bool = False,
) -> Probe:  # fmt: skip
    own = head == "categorical" and hasattr(loss, "head_type")
    over = networks(head, own=own, dtype=dtype, one_hot=one_hot or only_one_hot, masked=masked)
    return Probe(built(loss, over, given), head, dtype, one_hot or only_one_hot)


def _again(make: Any, first: Probe, **changes: Any) -> Probe:
    probe = make(**{"dtype": first.dtype, **changes})
    probe.copies = first.copies
    return probe


def _in_double_if_possible(make: Any) -> Probe:
    """In float64, or in float32 if the loss cannot be computed so; row by row, or if it cannot, each row twice."""
    first: Exception | None = None
    for dtype, copies in ((torch.float64, 1), (torch.float64, 2), (torch.float32, 1), (torch.float32, 2)):
        try:
            probe = make(dtype=dtype)
            probe.copies = copies
            _one_value(probe)
            return probe
        except CheckError:
            raise
        except Exception as error:
            first = first or error
    said = (str(first).strip() or repr(first)).splitlines()[0]
    raise CheckError(f"The loss cannot be built or called: {type(first).__name__}: {said}") from first


def _one_value(probe: Probe, **more: Any) -> float:
    rows, _ = checks.transitions(torch.Generator().manual_seed(0), n_step=False)
    return probe.value(probe.data(rows[[0] * probe.copies], **more)).item()


def _reads_steps(probe: Probe) -> bool:
    q = checks.values_for(Target(), torch.Generator().manual_seed(2))
    probe.set(Values(q, q + 1))
    try:
        return _one_value(probe) != _one_value(probe, steps_to_next_obs=torch.full((probe.copies, 1), 3))
    except Exception:
        return False


def _in_words(claim: Target, head: str, n_steps: int) -> str:
    kind = "prior" if claim.prior else "entropy" if claim.cost_weight else "boltzmann"
    parts = (kind if claim.value == "softmax" else claim.value, claim.bonus)
    names = [name for name, (*made, of) in METHODS.items() if tuple(made) == parts and of == head]
    numbers = {"tau": claim.tau, "alpha": claim.alpha, "clip_min": claim.clip_min, "gamma": claim.gamma}
    shown = {"gamma"} | ({"tau"} if claim.value != "max" else set()) | ({"alpha"} if claim.bonus != "none" else set())
    shown |= {"clip_min"} if claim.bonus == "munchausen" else set()
    words = [*(names[:1] or (*parts, head)), *(f"{name}={value:g}" for name, value in numbers.items() if name in shown)]
    words += ["double"] * claim.double + [f"n_steps={n_steps}"] * (n_steps > 1)
    return ", ".join(words)
