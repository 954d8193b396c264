"""Other dtypes, encodings, masks, vmap and compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.objectives import DQNLoss
from wrong_losses import DQN, NUMBERS, OneHotDQN

from torchrl_reg.objectives import MunchausenDQNLoss
from torchrl_reg.testing import Check, check_loss


def check(cls: Any, name: str, **claims: Any) -> Check:
    report = check_loss(lambda network: cls(network), method="dqn", **{**NUMBERS, **claims})
    return next(each for each in report.checks if each.name == name)


class OnlyFloat32(DQN):
    def bootstrap(self, data: Any) -> Any:
        q = super().bootstrap(data)
        return q if q.dtype == torch.float64 else q.half().float()


def test_a_dtype_that_loses_digits() -> None:
    assert check(DQN, "other dtype").status == "pass"
    found = check(OnlyFloat32, "other dtype")
    assert found.status == "fail" and found.expected != found.got


def test_a_loss_that_takes_float32_alone() -> None:
    class Single(DQN):
        def target(self, data: Any) -> Any:
            assert data["next", "reward"].dtype == torch.float32, "single precision only"
            return super().target(data)

    assert check(Single, "one step").status == "pass"
    assert check(Single, "other dtype").note == "raises AssertionError: single precision only"


def test_one_hot_actions_where_they_are_claimed() -> None:
    assert check(DQN, "one-hot actions").status == "n/a"
    assert check(OneHotDQN, "one-hot actions").status == "pass"
    report = check_loss(OneHotDQN, method="dqn", action_space="one-hot", gamma=0.9)
    assert report.passed and "one-hot actions" not in [each.name for each in report.checks]


def test_masks_count_where_they_are_claimed() -> None:
    class Blind(DQN):
        def q(self, network: Any, data: Any) -> Any:
            return network.module[0](data.select("observation"))["action_value"]

    assert check(DQN, "action mask").status == check(DQN, "action mask", masks=True).status == "pass"
    assert check(Blind, "action mask").status == "n/a"
    assert check(Blind, "action mask", masks=True).errors == ("action mask ignored",)
    assert check(DQN, "padding").status == "n/a"
    assert check(DQN, "padding", masks=True).errors == ("padding counts",)


def test_vmap() -> None:
    class Branching(DQN):
        def bootstrap(self, data: Any) -> Any:
            return super().bootstrap(data) if data["next", "reward"].sum().item() < 9 else 0.0

    assert check(DQN, "vmap").status == "pass"
    assert check(Branching, "vmap").status == "n/a"


@pytest.mark.slow
@pytest.mark.parametrize("loss", [DQNLoss, MunchausenDQNLoss])
def test_compile(loss: Any) -> None:
    report = check_loss(loss, compile=True)
    (found,) = (each for each in report.checks if each.name == "compile")
    assert found.status == "pass", str(report)
