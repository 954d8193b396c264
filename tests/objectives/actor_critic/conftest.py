"""Losses over an actor and critics: the table and its parts as fixtures."""

from __future__ import annotations

from typing import Any

import pytest
from critic_cases import CASES, lagged


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Any:
    return CASES[request.param]


@pytest.fixture
def cases() -> dict[str, Any]:
    return CASES


@pytest.fixture
def lagged_tensors() -> Any:
    return lagged
