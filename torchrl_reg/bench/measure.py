"""Interleaved measurements: every round runs every case once, so a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Args:
        name: what is measured.
        measure: does it once and returns the amount, in the table's unit.
        reference: name of the case it is compared to.
    """

    name: str
    measure: Callable[[], float]
    reference: str


@dataclass(frozen=True)
class Table:
    """Cases to compare; ``unit`` is steps/s (more is better) or us (less is better)."""

    title: str
    unit: str
    cases: Sequence[Case]


@dataclass(frozen=True)
class Row:
    """Median amount of a case, and the median of its ratio to the reference within the same round."""

    table: str
    name: str
    unit: str
    amount: float
    ratio: float
    reference: str
    rounds: int


def measured(table: Table, rounds: int) -> list[Row]:
    """Medians over ``rounds`` rounds, after one warm-up round."""
    amounts: dict[str, list[float]] = {case.name: [] for case in table.cases}
    for number in range(rounds + 1):
        for case in table.cases:
            torch.set_flush_denormal(False)  # PyTorch's default, which our recipes change
            amount = case.measure()
            if number:
                amounts[case.name].append(amount)
    rows = []
    for case in table.cases:
        pairs = zip(amounts[case.name], amounts[case.reference], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        amount = statistics.median(amounts[case.name])
        rows.append(Row(table.title, case.name, table.unit, amount, ratio, case.reference, rounds))
    return rows
