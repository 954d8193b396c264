"""Losses over a policy and V(s): the table and its parts as fixtures."""

from __future__ import annotations

from typing import Any

import pytest
from policy_cases import CASES, lagged, make_actor, make_value


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Any:
    return CASES[request.param]


@pytest.fixture
def cases() -> dict[str, Any]:
    return CASES


@pytest.fixture
def lagged_tensors() -> Any:
    return lagged


@pytest.fixture
def actor() -> Any:
    return make_actor


@pytest.fixture
def value_network() -> Any:
    return make_value
