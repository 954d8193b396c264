"""Every planner grows the trees that it grew when golden_trees.json was written and read through."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

spec = importlib.util.spec_from_file_location("make_golden_trees", Path(__file__).parent / "make_golden_trees.py")
assert spec is not None and spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

EXPECTED = json.loads(make.GOLDEN.read_text())
GROWN = make.golden_trees()


def same(expected: Any, grown: Any, at: str) -> None:
    if isinstance(expected, dict):
        assert expected.keys() == grown.keys(), at
        for name in expected:
            same(expected[name], grown[name], f"{at}/{name}")
    elif isinstance(expected, list):
        assert len(expected) == len(grown), at
        for index, (one, other) in enumerate(zip(expected, grown, strict=True)):
            same(one, other, f"{at}/{index}")
    else:
        assert expected == pytest.approx(grown, abs=1e-9), at


@pytest.mark.parametrize("name", EXPECTED)
def test_golden(name: str) -> None:
    same(EXPECTED[name], GROWN[name], name)


def test_every_golden_tree_is_there() -> None:
    assert EXPECTED.keys() == GROWN.keys()
