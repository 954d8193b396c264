"""The same loss under variations: other dtypes, encodings of actions, masks, vmap and compilation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchrl_reg.testing.checks import Case, gradient_check
from torchrl_reg.testing.probe import NUM_ACTIONS, NUM_STATES, Probe, total
from torchrl_reg.testing.report import Check, compared, tried
from torchrl_reg.testing.targets import Values

Rebuild = Callable[..., Probe]
#: The rows that are read again.
SOME = slice(None, None, 5)
_UNSEEN = "does not see it (masks=True, --masks claims that it does)"


@tried("other dtype")
def dtype_check(case: Case, rebuild: Rebuild) -> Check:
    """Float32 and float64 give the same losses, each in its own dtype."""
    other = torch.float32 if case.probe.dtype == torch.float64 else torch.float64
    return compared("other dtype", case.reading[SOME].loss, case.reread(rebuild(dtype=other), SOME).reading.loss)


@tried("one-hot actions")
def one_hot_check(case: Case, rebuild: Rebuild) -> Check:
    """One-hot actions give the losses of the same actions as indices, where the loss declares that it takes them."""
    probe = rebuild(one_hot=True)
    if "one" not in str(getattr(probe.loss, "action_space", "")):
        return Check("one-hot actions", "n/a", note="its action_space does not say one-hot")
    again = case.reread(probe, SOME)
    errors = gradient_check(again).errors
    return compared("one-hot actions", case.reading[SOME].loss, again.reading.loss, errors, "the loss of a row")


@tried("action mask")
def action_mask_check(case: Case, rebuild: Rebuild, *, claimed: bool) -> Check:
    """Forbidden actions at s' do not count, where the network takes a mask and the loss sees its values."""
    name, allowed = "action mask", torch.ones(NUM_STATES, NUM_ACTIONS, dtype=torch.bool)
    allowed[torch.arange(NUM_STATES), case.values.target.argmax(-1)] = False  # the best one, which a maximum would take
    rows = case.rows[case.group == 0]
    rows, probe = rows[allowed[rows.s, rows.a]], rebuild(masked=True)
    probe.set(case.values)
    reading = probe.read(rows, **{"action_mask": allowed[rows.s], "next.action_mask": allowed[rows.next_s]})
    again = Case(probe, case.held, case.values._replace(mask=allowed), rows, torch.zeros_like(rows.s), reading, {})
    y, ignored = again.targets(case.held), case.held(rows, case.values)
    if again.distance(y):
        return compared(name, y, y)
    if not claimed:
        return Check(name, "n/a", note=_UNSEEN)
    return compared(name, y, again.seen(), ["action mask ignored"] * bool(again.distance(ignored)))


@tried("padding")
def padding_check(case: Case, *, claimed: bool) -> Check:
    """Rows that ``("collector", "mask")`` excludes do not count."""
    each, counts = case.reading.loss[:6], torch.tensor([True, False, True, True, False, True])
    data = case.probe.data(case.rows, **case.more)[:6]
    data["collector", "mask"] = counts.unsqueeze(-1)
    got = case.probe.value(data).double()
    ignored = torch.isclose(got, each.mean(), rtol=1e-5)
    found = compared("padding", each[counts].mean(), got, ["padding counts"] * bool(ignored))
    return found if claimed or found.status == "pass" else Check("padding", "n/a", note=_UNSEEN)


@tried("priority weights")
def weights_check(case: Case, *, claimed: bool) -> Check:
    """The weights ``w`` of a prioritized sample: ``mean(w l)``, or ``sum(w l) / sum(w)``."""
    name, probe, each = "priority weights", case.probe, case.reading.loss[:6]
    w = torch.tensor([1.0, 0.15, 0.4, 0.7, 0.25, 0.9], dtype=torch.float64)
    data = probe.data(case.rows, **case.more)[:6]
    key = getattr(getattr(probe.loss, "tensor_keys", None), "priority_weight", "priority_weight")
    data[key] = w.to(probe.dtype)
    got = probe.value(data).double()
    known = {
        "": [(w * each).mean(), (w * each).sum() / w.sum()],
        "priority weights ignored": [each.mean()],
        "priority weights squared": [(w**2 * each).mean(), *((w**2 * each).sum() / v.sum() for v in (w, w**2))],
        "mean over pairs of rows": [w.mean() * each.mean()],
    }
    close = {error for error, numbers in known.items() if any(torch.isclose(got, x, rtol=1e-4) for x in numbers)}
    if "" in close:
        return compared(name, got, got)
    own = vars(probe.loss).get("use_prioritized_weights", False) is not False  # every LossModule's class has it, too
    if "priority weights ignored" in close and not (claimed or own):
        return Check(name, "n/a", note="does not see them (weights=True, --weights claims that it does)")
    return compared(name, known[""][0], got, sorted(close), "the loss of six rows")


@tried("large values")
def large_values_check(case: Case, rebuild: Rebuild) -> Check:
    """Values and gaps of 1000 tau, whose exponentials overflow and underflow; of a grid, those near its ends."""
    name, claim, atoms = "large values", case.held, case.probe.head == "categorical"
    if case.fitted is None or (atoms and (claim.tau > 1 or (claim.bonus != "none" and claim.clip_min < -2))):
        return Check(name, "n/a", note="not compared: what it should regress to is unknown, or not on the atoms")
    size = 8.0 if atoms else 1000 * claim.tau if claim.tau else 100.0
    probe, rows = rebuild(dtype=torch.float32) if atoms else case.probe, case.rows[case.group == 0]
    losses, wanted = [], []
    for worth in (size, -size):
        gaps = torch.rand(NUM_STATES, NUM_ACTIONS, dtype=torch.float64) * (worth + 10 if atoms else size)
        target = worth - gaps.masked_fill(gaps == gaps.amin(-1, keepdim=True), 0.0)
        online = claim.gamma * worth + torch.randn(NUM_STATES, NUM_ACTIONS, dtype=torch.float64)
        policy = target / claim.tau if case.values.policy is not None else None
        values = Values(online, target if probe.target else online, policy)
        probe.set(values)
        reading = probe.read(rows)
        y, q = claim(rows, values), online[rows.s, rows.a]
        losses.append(probe.mean_targets(rows, online, reading) if atoms else reading.loss)
        wanted.append(y if atoms else case.fitted(q - y))
    case.probe.set(case.values)
    got, expected = torch.cat(losses), torch.cat(wanted)
    wrong = ~((got - expected).abs() <= 1e-3 * (1 + expected.abs()))  # NaN is
    if not wrong.any():
        return Check(name, "pass", expected[0].item(), got[0].item())
    row = int(wrong.int().argmax())
    errors = ("overflow of large values",) * (not bool(got.isfinite().all()))
    return Check(name, "fail", expected[row].item(), got[row].item(), errors, f"at values of +-{size:g}")


@tried("vmap")
def vmap_check(case: Case) -> Check:
    """``torch.vmap`` over the rows gives their losses."""
    loss, data = case.probe.loss, case.probe.data(case.rows, **case.more)[:4]
    each = torch.vmap(lambda row: total(loss(row.expand(case.probe.copies)), case.probe.copies), randomness="different")
    return _equal("vmap", each(data), case)


@tried("compile")
def compile_check(case: Case, *, wanted: bool) -> Check:
    """``torch.compile`` gives the same losses."""
    if not wanted:
        return Check("compile", "n/a", note="skipped: it takes seconds (compile=True, --compile)")
    compiled, data = torch.compile(case.probe.loss), case.probe.data(case.rows, **case.more)
    copies = case.probe.copies
    got = [total(compiled(data[[row] * copies]), copies).detach() for row in range(4)]
    return _equal("compile", torch.stack(got), case)


def _equal(name: str, got: Tensor, case: Case) -> Check:
    if case.probe.head == "implicit":
        return Check(name, "pass" if bool(got.isfinite().all()) else "fail", note="finite; it draws fractions")
    return compared(name, case.reading.loss[: len(got)], got, rtol=1e-3)
