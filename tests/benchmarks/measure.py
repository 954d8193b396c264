"""Interleaved measurements: every round runs every case once, so a busy machine slows all of them alike."""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

Measure = Callable[[], float]


@dataclass(frozen=True)
class Table:
    """Cases to compare: each measures once and returns an amount in ``unit``; the first is the reference."""

    title: str
    unit: str
    cases: Mapping[str, Measure]


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
    amounts: dict[str, list[float]] = {name: [] for name in table.cases}
    for number in range(rounds + 1):
        for name, measure in table.cases.items():
            torch.set_flush_denormal(False)  # PyTorch's default, which our recipes change
            amount = measure()
            if number:
                amounts[name].append(amount)
    reference = next(iter(table.cases))
    return [
        Row(
            table=table.title,
            name=name,
            unit=table.unit,
            amount=statistics.median(own),
            ratio=statistics.median(one / other for one, other in zip(own, amounts[reference], strict=True)),
            reference=reference,
            rounds=rounds,
        )
        for name, own in amounts.items()
    ]


def microseconds(call: Callable[[], object], calls: int = 30) -> Measure:
    """Measures a call by the mean of ``calls`` in a row."""

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e6 * (time.perf_counter() - start) / calls

    return measure


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
    torch.set_num_threads(1)
    rows = []
    for table in tables(**options):
        found = measured(table, rounds)
        rows += found
        if not as_json:
            print(f"{table.title} ({table.unit}, medians of {rounds} interleaved rounds, one thread)")
            for row in found:
                print(f"  {row.name:42s} {row.amount:10.0f}  x{row.ratio:.2f} of {row.reference}", flush=True)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
