"""``torchrl-reg doctor``: checks this machine, or judges the health of runs from their records."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from torchrl_reg.lab.analysis.documents import AnalysisError
from torchrl_reg.lab.doctor.machine import CHECKS, Finding, checked
from torchrl_reg.lab.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``RUN ...`` and ``--json``."""
    parser.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="RUN",
        help="judge run folders instead of the machine: numbers, values, bonus, exploration, tau",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a checklist")


def run(args: argparse.Namespace) -> int:
    """Prints the checklist, or the findings on the RUNs; returns 1 if something essential is broken, else 0.

    Raises:
        AnalysisError: a RUN is no run folder.
    """
    for folder in args.runs:
        if not (folder / "config.yaml").is_file():
            raise AnalysisError(f"RUN must be a run folder, which holds a config.yaml, got {folder}.")
    findings = [] if args.runs else [finding for check in CHECKS for finding in checked(check)]
    for folder in args.runs:
        name = f" of {folder}" if len(args.runs) > 1 else ""
        found = checked(partial(_of_run, folder), name="record")
        findings += [dataclasses.replace(finding, name=finding.name + name) for finding in found]
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _print_checklist(findings)
        if args.runs:
            print("Only these runs were looked at; torchrl-reg doctor without a RUN checks the machine.")
    return int(any(finding.essential and finding.status == "missing" for finding in findings))


def _of_run(folder: Path) -> Iterable[Finding]:
    from torchrl_reg.lab.doctor.records import read_config, record_findings

    config = read_config(folder / "config.yaml")
    yield from record_findings(folder, config)
    from torchrl_reg.lab.doctor.temperature import temperature_finding  # builds environments, and so needs torch

    yield from checked(lambda: [temperature_finding(folder, config)], name="tau")


def _print_checklist(findings: list[Finding]) -> None:
    width = min(max((len(finding.name) for finding in findings), default=0), 40)
    indent = " " * (len("missing") + 4 + width)
    for finding in findings:
        print(printable(f"{finding.status:<7}  {finding.name:<{width}}  {finding.detail}"))
        if finding.todo:
            print(f"{indent}-> {finding.todo}")
    counts = Counter(finding.status for finding in findings)
    broken = [finding.name for finding in findings if finding.essential and finding.status == "missing"]
    print(f"\n{counts['ok']} ok, {counts['warn']} to look at, {counts['missing']} missing; ", end="")
    print(f"broken: {', '.join(broken)}." if broken else "nothing essential is broken.")
