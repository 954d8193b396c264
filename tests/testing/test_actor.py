"""Discrete soft actor-critics: the planted errors are named, TorchRL's and CleanRL's have none."""

from __future__ import annotations

from typing import Any

import pytest
from torchrl.objectives import DiscreteSACLoss
from wrong_actor_critics import GAMMA, TAU, WRONG, DiscreteSAC, LossPerCritic

from torchrl_reg.testing import check_loss


@pytest.mark.parametrize(("cls", "name"), WRONG.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_planted_error_is_named(cls: Any, name: str) -> None:
    report = check_loss(lambda *networks: cls(*networks), method="discrete_sac", tau=TAU, gamma=GAMMA)
    assert not report.passed and report.errors == [name], str(report)


@pytest.mark.parametrize("cls", [DiscreteSAC, LossPerCritic])
def test_cleanrls_has_none(cls: Any) -> None:
    report = check_loss(lambda *networks: cls(*networks), method="discrete_sac", tau=TAU, gamma=GAMMA)
    assert report.passed and report.errors == [], str(report)


@pytest.mark.parametrize("action_space", ["categorical", "one-hot"])
def test_torchrls_has_none(action_space: str) -> None:
    report = check_loss(DiscreteSACLoss, tau=TAU, action_space=action_space)
    assert report.passed and report.errors == [], str(report)
    assert [check.status for check in report.checks if check.name == "actor's gradient"] == ["pass"]
