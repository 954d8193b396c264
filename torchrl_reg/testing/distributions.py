"""Checks of distributions alone: quantiles that differ from each other, and atoms that land on the grid.

Shapes: ``N`` rows, ``I`` online and ``J`` target quantiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from torchrl_reg.testing.checks import Case
from torchrl_reg.testing.probe import NUM_ACTIONS, NUM_STATES, SUPPORT
from torchrl_reg.testing.report import Check, compared, raised, tried
from torchrl_reg.testing.targets import Rows

#: Known error -> the fraction that weighs the pair of an online and a target quantile, given both.
_FRACTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "": lambda online, target: online,
    "fractions on the target's axis": lambda online, target: target,
    "fractions turned round": lambda online, target: 1 - online,
    "fractions ignored": lambda online, target: torch.full_like(online, 0.5),
}


@tried("quantiles")
def quantiles_check(case: Case) -> Check:
    """Quantiles that differ: the loss of all pairs, each weighed by the online fraction, under one policy for all."""
    name, probe = "quantiles", case.probe
    if case.fitted is None:
        return Check(name, "n/a", note="not compared: what it regresses to is unknown")
    widths = 0.2 + torch.rand(NUM_STATES, NUM_ACTIONS, dtype=torch.float64)
    rows, more = case.rows[::2], {entry: value[::2] for entry, value in case.more.items()}
    probe.spread = True
    probe.set(case.values, widths)
    reading = probe.read(rows, **more)
    probe.spread = False
    probe.set(case.values)
    if any(trace.odd for trace in reading.traces):
        return Check(name, "n/a", note="it draws an odd number of fractions")
    known = {(error, False): _quantile_losses(case, rows, widths, error) for error in _FRACTIONS}
    known["policy per quantile", True] = _quantile_losses(case, rows, widths, "", policy_too=True)
    fits = [error for (error, _), losses in known.items() if torch.allclose(reading.loss, losses, rtol=1e-4)]
    return compared(name, known["", False], reading.loss, fits[:1], "the loss of a row whose quantiles differ")


def _quantile_losses(case: Case, rows: Rows, widths: Tensor, error: str, policy_too: bool = False) -> Tensor:
    assert case.fitted is not None
    fractions, q = case.probe.fractions, case.values.online[rows.s, rows.a]
    beside = [(4 * fraction - 2) * widths for fraction in fractions]
    z = torch.stack([q + shift[rows.s, rows.a] for shift in beside], -1).unsqueeze(-1)
    y = torch.stack([case.held(rows, case.values, shift, policy_too=policy_too) for shift in beside], -1).unsqueeze(-2)
    online, target = torch.meshgrid(fractions, fractions, indexing="ij")
    level = _FRACTIONS[error](online, target)
    weight = torch.where(y < z, 1 - level, level)
    return 2 * (weight * case.fitted(z - y)).mean((-2, -1))  # fitted to quantiles that are equal: half weights


def on_the_grid_check(case: Case) -> Check:
    """Terminal rows whose rewards are atoms, or beyond the last ones: all of the mass is on one atom."""
    name, probe = "atoms on the grid", case.probe
    if case.fitted is None or case.errors:
        return Check(name, "n/a", note="not compared: it has other errors")
    low, high = SUPPORT[0].item(), SUPPORT[-1].item()
    r = torch.tensor([0.5, -3.25, low, high, 0.0, low - 2, high + 3], dtype=torch.float64)
    count = torch.arange(len(r))
    s, ends = count % NUM_STATES, torch.ones_like(count, dtype=torch.bool)
    rows = Rows(
        s, count % NUM_ACTIONS, r, (s + 1) % NUM_STATES, ends, ~ends, torch.full_like(s, int(case.rows.steps[0]))
    )
    values = case.values
    if (
        case.claim.bonus != "none"
    ):  # a bonus would shift the mass from the atom; where all values are one it is a number
        values = values._replace(target=torch.zeros_like(values.target))
        rows = replace(rows, r=r - case.claim.bonus_of(rows, values.target))
    probe.set(values)
    try:
        reading = probe.read(rows)
    except Exception as error:
        return Check(name, "fail", note=f"{raised(error)}, where rewards are atoms or beyond them")
    finally:
        probe.set(case.values)
    means = probe.mean_targets(rows, values.online, reading)
    lost = bool((reading.loss.abs() < 1e-6).any())
    note = "mean of the target of a terminal row whose reward is an atom, or beyond"
    return compared(name, r.clamp(low, high), means, ["mass lost on the grid"] * lost, note, atol=1e-3)
