"""Interleaved measurements: every round runs every case once, so a busy machine slows all of them equally."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from torchrl_reg.lab.run.provenance import provenance

Measure = Callable[[], float]
RESULTS = Path(__file__).parent / "results"


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


def main(table: Callable[..., Table], arguments: Sequence[str] | None = None) -> None:
    """Measures ``table()``, prints its rows and saves them; its parameters are options of the command."""
    topic = Path(inspect.getfile(table)).stem
    parser = argparse.ArgumentParser(description=table.__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="that medians are taken over (default: 5)")
    parser.add_argument("--save", type=Path, default=RESULTS / f"{topic}.json", help="JSON file (default: %(default)s)")
    for name, parameter in inspect.signature(table).parameters.items():
        default = parameter.default
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"(default: {default})")
    options = vars(parser.parse_args(arguments))
    rounds, path = options.pop("rounds"), options.pop("save")
    if rounds < 1:
        parser.error(f"--rounds must be at least 1, got {rounds}")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = measured(table(**options), rounds)
    print(f"{rows[0]['table']} ({rows[0]['unit']}, medians of {rounds} interleaved rounds, one thread)")
    for row in rows:
        print("  {name:50s} {amount:10.0f}  x{ratio:.2f} of {reference}".format_map(row))
    machine = {"options": options, **_machine()}
    path.write_text("[\n" + ",\n".join(json.dumps(row | machine) for row in rows) + "\n]\n", encoding="utf-8")


def _machine() -> dict[str, Any]:
    start = provenance(torch.device("cpu"), Table)
    code = {name: start[name] for name in ("started_at", "commit", "uncommitted_changes", "processor")}
    return {**code, "torch": torch.__version__}
