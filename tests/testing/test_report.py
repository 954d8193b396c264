"""What is printed of a check."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from torchrl_reg.testing import Check, Report

CHECKS = [
    Check("one step", "fail", 1.0, 2.5, ("gamma missing",), "target at s=1"),
    Check("truncated", "fail", float("nan"), None, ("gamma missing", "entropy missing")),
    Check("compile", "n/a", note="skipped"),
]


@pytest.mark.parametrize("rich", [True, False])
def test_a_table_with_and_without_rich(rich: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    text = str(Report("MyLoss", "dqn, gamma=0.9", CHECKS))
    assert ("─" in text) == rich and "MyLoss as dqn, gamma=0.9" in text
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
