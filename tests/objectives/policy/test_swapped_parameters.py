"""Swapped parameters (functional calls, ensembles by vmap) are those that count."""

from __future__ import annotations

from typing import Any

import pytest
from parameter_sets import check_assignment, check_to_module, check_vmap

# PyTorch has no batching rule for the gradient of unfold (the windows of PCL): slower, and right.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")


@pytest.mark.parametrize("check", [check_vmap, check_to_module, check_assignment], ids=lambda f: f.__name__[6:])
def test_swapped_parameters_count(case: Any, check: Any) -> None:
    check(case.loss(), case.loss(seed=5), case.batch(9))


def test_a_weight_that_was_off_counts_when_swapped_in(cases: Any) -> None:
    for name, kwargs in (("m_iq", {"alpha": 0.0}), ("trust_pcl", {"lam": 0.0})):
        check_to_module(cases[name].loss(**kwargs), cases[name].loss(), cases[name].batch(9))


def test_learnt_coefficients(cases: Any) -> None:
    for name, kwargs in (("m_iq", {"target_entropy": 1.0}), ("trust_pcl", {"max_kl": 0.01})):
        check_vmap(cases[name].loss(**kwargs), cases[name].loss(seed=5, **kwargs), cases[name].batch(9))
