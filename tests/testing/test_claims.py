"""What a loss is taken to claim."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchrl.objectives import DistributionalDQNLoss, DQNLoss
from wrong_losses import DQN, HardValue

from torchrl_reg import objectives
from torchrl_reg.testing import METHODS, CheckError, check_loss
from torchrl_reg.testing.claims import guessed_head, guessed_method, made_claim


@pytest.mark.parametrize(
    ("name", "method", "head"),
    [
        ("MunchausenDQNLoss", "m_dqn", "expected"),
        ("MunchausenIQNLoss", "m_iqn", "implicit"),
        ("MunchausenCategoricalLoss", "m_c51", "categorical"),
        ("QuantileRegressionDQNLoss", "qr_dqn", "quantiles"),
        ("SoftDQNLoss", "soft_dqn", "expected"),
    ],
)
def test_ours_are_known_by_their_names(name: str, method: str, head: str) -> None:
    loss = getattr(objectives, name)
    assert (guessed_method(loss), guessed_head(loss, method)) == (method, head)


def test_torchrls_and_plain_ones() -> None:
    assert guessed_method(DQNLoss) == guessed_method(DQN) == "dqn"
    assert guessed_method(DistributionalDQNLoss) == "c51"
    assert guessed_method(int) is None


def test_numbers_are_read_from_the_loss() -> None:
    def make(network: Any) -> Any:
        loss = objectives.MunchausenDQNLoss(network, tau=0.3, alpha=0.7, clip_min=-0.6)
        return loss.make_value_estimator(gamma=0.8)

    def with_beta(network: Any) -> Any:
        return objectives.MutualInformationDQNLoss(network, beta=2.5).make_value_estimator(gamma=0.8)

    assert check_loss(make).claim == "m_dqn, tau=0.3, alpha=0.7, clip_min=-0.6, gamma=0.8"
    assert check_loss(with_beta).claim == "sql, tau=0.4, gamma=0.8"


def test_a_class_is_built_with_the_numbers_given() -> None:
    assert check_loss(objectives.MutualInformationDQNLoss, tau=0.4).claim == "sql, tau=0.4, gamma=0.9"
    assert check_loss(objectives.AdvantageLearningLoss, method="pal", alpha=0.3).claim == "pal, alpha=0.3, gamma=0.9"


def test_wrong_numbers_are_wrong() -> None:
    report = check_loss(lambda network: DQN(network), method="dqn", gamma=0.5)
    assert not report.passed and report.errors == []


def sparse_munchausen(network: Any) -> Any:
    return objectives.SparseDQNLoss(network, tau=0.5, shaping=objectives.Munchausen(0.5))


class NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> Any:
        raise RuntimeError("no way back")


class BackwardRaises(DQN):
    def predicted(self, data: Any) -> Any:
        return NoWayBack.apply(super().predicted(data))


class Answers(torch.nn.Module):
    """What is no loss: nothing, or a number without a gradient."""

    def __init__(self, network: Any, answer: Any) -> None:
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, data: Any) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (lambda network: DQN(network), {"method": "sarsa"}, "method must be one of dqn, .*, got 'sarsa'"),
        (lambda network: HardValue(network), {"method": "m_dqn", "gamma": 0.9}, "tau must be given"),
        (lambda network: HardValue(network), {"method": "m_dqn", "tau": 0.5, "gamma": 0.9}, "alpha must be given"),
        (lambda network: DQN(network), {"method": "dqn"}, "gamma must be given"),
        (lambda network: DQN(network), {"method": "soft_dqn", "tau": -1.0, "gamma": 0.9}, "tau must be a finite"),
        (lambda network: 3, {"method": "dqn"}, "The loss must be a LossModule.* got a int"),
        (3, {}, "loss_or_factory must be .*, got a int"),
        (
            lambda network: torch.nn.Sequential(network),
            {"gamma": 0.9},
            "must return an entry named loss, got ",
        ),
        (sparse_munchausen, {}, "method must be given .* got Tsallis with Munchausen"),
        (DQN, {"action_space": "box"}, "action_space must be one of categorical, one-hot, got 'box'"),
        (lambda network: Answers(network, None), {"gamma": 0.9, "method": "dqn"}, "entry named loss, got a NoneType"),
        (lambda network: Answers(network, torch.ones(())), {"gamma": 0.9, "method": "dqn"}, "got one that is detached"),
        (BackwardRaises, {"gamma": 0.9, "method": "dqn"}, "whose backward pass raises RuntimeError: no way back.$"),
        (lambda network: 1 / 0, {"method": "dqn"}, "cannot be built or called: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_sentence(loss: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckError, match=message) as caught:
        check_loss(loss, **options)
    assert "\n" not in str(caught.value)


def test_every_method_makes_a_claim() -> None:
    for value, bonus, _ in METHODS.values():
        claim = made_claim(value, bonus, {"tau": 0.5, "alpha": 0.6, "clip_min": -0.4, "gamma": 0.9})
        assert claim.gamma == 0.9 and claim.bonus == bonus


class PlainSQL(DQN):
    """Soft Q-learning with an inverse temperature and a uniform prior."""

    beta = 2.5

    def bootstrap(self, data: Any) -> Any:
        q = self.q(self.target_network, data["next"])
        return ((self.beta * q).logsumexp(-1) - math.log(3)) / self.beta


def test_an_inverse_temperature_is_one() -> None:
    report = check_loss(lambda network: PlainSQL(network), method="sql", gamma=0.9)
    assert report.passed and report.claim == "sql, tau=0.4, gamma=0.9", str(report)
