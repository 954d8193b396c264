"""The printed report of a check.

And the errors that it can name: each is explained, and no two change the same targets.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from torchrl_reg.testing import Check, Report
from torchrl_reg.testing.checks import transitions, values_for
from torchrl_reg.testing.report import KNOWN_ERRORS, hypotheses, mistakes_of
from torchrl_reg.testing.targets import METHODS, Values, as_claim

CHECKS = [
    Check("one step", "fail", 1.0, 2.5, ("gamma missing",), "target at s=1"),
    Check("truncated", "fail", float("nan"), None, ("gamma missing", "entropy missing")),
    Check("compile", "n/a", note="skipped"),
]


def test_a_table() -> None:
    text = str(Report("MyLoss", "dqn, gamma=0.9", CHECKS))
    assert text.splitlines()[:2] == [
        "MyLoss as dqn, gamma=0.9",
        "check      status  expected  got  known error, or note",
    ]
    assert "2.5" in text and "gamma missing; target at s=1" in text
    assert "0 pass, 2 fail, 1 n/a" in text and "gamma missing: the bootstrap is not discounted." in text


def test_errors_once_and_json_without_nan() -> None:
    report = Report("MyLoss", "dqn", CHECKS)
    assert not report.passed and report.errors == ["gamma missing", "entropy missing"]
    read: Any = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert read["checks"][1]["expected"] is None and read["checks"][0]["got"] == 2.5 and read["errors"] == report.errors


def test_nothing_failed() -> None:
    report = Report("MyLoss", "dqn", CHECKS[2:])
    assert report.passed and report.errors == [] and "0 pass, 0 fail, 1 n/a" in str(report)
    assert "No known errors" in str(Report("MyLoss", "dqn", [Check("one step", "fail", 0.0, 1.0)]))


# -- known errors ---------------------------------------------------------------------------------------------------


NUMBERS = {"tau": 0.5, "alpha": 0.6, "clip_min": -0.4, "gamma": 0.9}
KINDS = sorted({(value, bonus) for value, bonus, _ in METHODS.values()})


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("double", [False, True])
def test_no_two_mistakes_look_alike(kind: tuple[str, str], double: bool) -> None:
    """Their targets differ on the rows of a check by far more than its tolerance, those of one name apart."""
    claim = as_claim(*kind, NUMBERS | {"double": double})
    generator = torch.Generator().manual_seed(1)
    values = Values(values_for(claim, generator), values_for(claim, generator))
    rows, _ = transitions(generator, n_step=True)
    found = list(hypotheses(claim, mistakes_of(claim)))
    singles = [(names, target(rows, values)) for names, target in found if len(names) < 2]
    assert len(singles) > 5
    for i, (names, y) in enumerate(singles):
        for others, z in singles[:i]:
            assert names == others or (y - z).abs().max() > 1e-4, (names, others)


def test_every_mistake_has_an_entry() -> None:
    for kind in KINDS:
        claim = as_claim(*kind, NUMBERS)
        for made in (claim, replace(claim, double=True), replace(claim, actor=True)):
            assert {mistake.name for mistake in mistakes_of(made)} <= set(KNOWN_ERRORS)
