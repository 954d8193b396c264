"""Interleaved measurements: every round runs every case once, so a busy machine slows all of them alike."""

from __future__ import annotations

import argparse
import gc
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from timeit import timeit
from typing import Any

import torch

Measure = Callable[[], float]


@dataclass(frozen=True)
class Table:
    """Cases to compare: each measures once and returns an amount in ``unit``; the first is the reference."""

    title: str
    unit: str
    cases: Mapping[str, Measure]


def measured(table: Table, rounds: int) -> list[dict[str, Any]]:
    """A row for each case: its median amount over ``rounds`` rounds, after one warm-up round, and its median ratio.

    Ratios are those to the reference within the same round.
    """
    amounts: dict[str, list[float]] = {name: [] for name in table.cases}
    for _ in range(rounds + 1):
        for name, measure in table.cases.items():
            torch.set_num_threads(1)
            torch.set_flush_denormal(False)  # PyTorch's default, which our recipes change
            amounts[name].append(measure())
    reference = next(iter(table.cases))
    common = {"unit": table.unit, "reference": reference, "rounds": rounds}
    rows = []
    for name, (_, *own) in amounts.items():
        ratio = median(one / other for one, other in zip(own, amounts[reference][1:], strict=True))
        rows.append({"table": table.title, "name": name, "amount": median(own), "ratio": ratio, **common})
    return rows


def microseconds(call: Callable[[], object], calls: int = 30) -> Measure:
    """Measures a call by the mean of ``calls`` in a row, garbage collection included."""
    return lambda: 1e6 * timeit(call, gc.enable, number=calls) / calls


def main(tables: Callable[..., Sequence[Table]], arguments: Sequence[str] | None = None) -> None:
    """Measures ``tables()`` and prints them; its parameters (``frames``, ``device``) are options of the command."""
    parser = argparse.ArgumentParser(description=tables.__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="that medians are taken over (default: 5)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of tables")
    for name, parameter in inspect.signature(tables).parameters.items():
        default = parameter.default
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"(default: {default})")
    options = vars(parser.parse_args(arguments))
    rounds, as_json = options.pop("rounds"), options.pop("json")
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    rows = []
    for table in tables(**options):
        rows += (found := measured(table, rounds))
        if not as_json:
            print(f"{table.title} ({table.unit}, medians of {rounds} interleaved rounds, one thread)")
            for row in found:
                print("  {name:42s} {amount:10.0f}  x{ratio:.2f} of {reference}".format_map(row), flush=True)
    if as_json:
        print(json.dumps(rows, indent=2))
