"""The same loss asked in other ways: other dtypes, encodings of actions, masks, vmap and compilation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_reg.testing.checks import Case, gradient_check
from torchrl_reg.testing.probe import NUM_ACTIONS, NUM_STATES, Probe, total
from torchrl_reg.testing.report import Check
from torchrl_reg.testing.targets import Target

Rebuild = Callable[..., Probe]
#: The rows that are read again.
SOME = slice(None, None, 5)


def dtype_check(case: Case, rebuild: Rebuild) -> Check:
    """Float32 and float64 give the same losses, each in its own dtype."""
    other = torch.float32 if case.probe.dtype == torch.float64 else torch.float64
    name = str(other).removeprefix("torch.")
    try:
        probe = rebuild(dtype=other)
        again = case.reread(probe, SOME).reading.loss
        dtype = probe.value(probe.data(case.rows[:2])).dtype
    except Exception as error:
        return _not(name, error)
    before = case.reading[SOME].loss
    worst = int((again - before).abs().argmax())
    right = torch.allclose(again, before, rtol=1e-4, atol=1e-5)
    note = "" if dtype == other else f"the loss of {name} data is {dtype}"
    return Check(name, "pass" if right else "fail", before[worst].item(), again[worst].item(), note=note)


def one_hot_check(case: Case, rebuild: Rebuild) -> Check:
    """One-hot actions give the losses of the same actions as indices, where the loss says that it takes them."""
    name = "one-hot actions"
    try:
        probe = rebuild(one_hot=True)
        if "one" not in str(getattr(probe.loss, "action_space", "")):
            return Check(name, "n/a", note="its action_space does not say one-hot")
        again = case.reread(probe, SOME)
    except Exception as error:
        return _not(name, error)
    before = case.reading[SOME].loss
    difference = (again.reading.loss - before).abs()
    worst = int(difference.argmax())
    numbers = before[worst].item(), again.reading.loss[worst].item()
    if difference[worst] <= 1e-5 * (1 + before[worst]):
        return Check(name, "pass", *numbers)
    misread = not again.reached()[torch.arange(len(again.rows)), again.rows.s, again.rows.a].all()
    errors = ("one-hot action misread",) if misread else gradient_check(again, None).errors
    return Check(name, "fail", *numbers, errors, note="the loss of a row")


def action_mask_check(case: Case, rebuild: Rebuild, held: Target, *, claimed: bool) -> Check:
    """Forbidden actions at s' do not count, where the network takes a mask and the loss sees its values."""
    name, allowed = "action mask", torch.ones(NUM_STATES, NUM_ACTIONS, dtype=torch.bool)
    allowed[torch.arange(NUM_STATES), case.values.target.argmax(-1)] = False  # the best one, which a maximum would take
    rows = case.rows[case.group == 0]
    rows = rows[allowed[rows.s, rows.a]]
    try:
        probe = rebuild(masked=True)
        probe.set(case.values)
        more = {"action_mask": allowed[rows.s], "next.action_mask": allowed[rows.next_s]}
        reading = probe.read(rows, **more)
    except Exception as error:
        return _not(name, error)
    none = torch.zeros_like(rows.s)
    again = Case(probe, held, case.values._replace(mask=allowed), rows, none, reading, more)
    y, ignored = again.targets(held), held(rows, case.values)
    worst = int((y - ignored).abs().argmax())
    if again.distance(y) is not None:
        return Check(name, "pass", y[worst].item(), y[worst].item())
    if not claimed:
        return Check(name, "n/a", note="does not see the network's mask (masks=True claims that it does)")
    errors = ("action mask ignored",) if again.distance(ignored) is not None else ()
    return Check(name, "fail", y[worst].item(), again.seen()[worst].item(), errors)


def padding_check(case: Case, *, claimed: bool) -> Check:
    """Rows that ``("collector", "mask")`` excludes do not count."""
    name, rows, each = "padding", case.rows[:6], case.reading.loss[:6]
    counts = torch.tensor([True, False, True, True, False, True])
    more = {key: value[:6] for key, value in case.more.items()} | {"collector.mask": counts.unsqueeze(-1)}
    try:
        got = case.probe.value(case.probe.data(rows, **more)).item()
    except Exception as error:
        return _not(name, error)
    expected, everything = each[counts].mean().item(), each.mean().item()
    if abs(got - expected) <= 1e-5 * (1 + abs(expected)):
        return Check(name, "pass", expected, got)
    if not claimed:
        return Check(name, "n/a", note="does not read ('collector', 'mask') (masks=True claims that it does)")
    ignored = abs(got - everything) <= 1e-5 * (1 + abs(everything))
    return Check(name, "fail", expected, got, ("padding counts",) if ignored else ())


def vmap_check(case: Case) -> Check:
    """``torch.vmap`` over the rows gives their losses."""
    data = case.probe.data(case.rows[:4], **{name: value[:4] for name, value in case.more.items()})
    try:
        got = torch.vmap(lambda row: total(case.probe.loss(row.expand(case.probe.copies))), randomness="different")(
            data
        )
    except Exception as error:
        return _not("vmap", error)
    return _equal("vmap", got, case)


def compile_check(case: Case, *, wanted: bool) -> Check:
    """``torch.compile`` gives the same losses."""
    if not wanted:
        return Check("compile", "n/a", note="skipped: it takes seconds (compile=True, --compile)")
    try:
        compiled = torch.compile(case.probe.loss)
        got = [total(compiled(case.probe.data(case.rows[[i] * case.probe.copies]))).detach() for i in range(4)]
    except Exception as error:
        return _not("compile", error)
    return _equal("compile", torch.stack(got), case)


def _equal(name: str, got: Tensor, case: Case) -> Check:
    if case.probe.head == "implicit":
        return Check(
            name, "pass" if bool(got.isfinite().all()) else "fail", note="draws fractions: only that it is finite"
        )
    expected = case.reading.loss[: len(got)]
    worst = int((got.double() - expected).abs().argmax())
    right = torch.allclose(got.double(), expected, rtol=1e-3, atol=1e-5)
    return Check(name, "pass" if right else "fail", expected[worst].item(), got[worst].item())


def _not(name: str, error: Exception) -> Check:
    said = (str(error).strip() or repr(error)).splitlines()[0]
    return Check(name, "n/a", note=f"raises {type(error).__name__}: {said[:80]}")
