"""Hand-computed targets; the mistakes differ from them and from each other.

Which distance a loss measures is found from its values, and what it claims from its name and its numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchrl.objectives import DistributionalDQNLoss, DQNLoss
from wrong_losses import DQN, HardValue

from torchrl_reg import objectives
from torchrl_reg.functional import munchausen_bonus, scaled_log_policy, soft_value
from torchrl_reg.regularizers import Tsallis
from torchrl_reg.testing import METHODS, CheckError, check_loss
from torchrl_reg.testing.targets import (
    Rows,
    Target,
    Values,
    as_claim,
    fitted,
    guessed_head,
    guessed_method,
    sparsemax,
)

NUMBERS = {"tau": 0.5, "alpha": 0.6, "clip_min": -0.4, "gamma": 0.9}


def one_row(**changed: bool) -> Rows:
    flags = {name: torch.tensor([changed.get(name, False)]) for name in ("terminated", "truncated")}
    index = {"s": torch.tensor([0]), "a": torch.tensor([1]), "next_s": torch.tensor([1])}
    return Rows(**index, r=torch.tensor([0.25]).double(), **flags, steps=torch.tensor([2 if changed.get("two") else 1]))


VALUES = Values(torch.tensor([[3.0, 1.0], [5.0, 6.0]]).double(), torch.tensor([[1.0, 0.5], [2.0, 1.0]]).double())


def test_targets_by_hand() -> None:
    dqn = Target(gamma=0.5)
    assert dqn(one_row(), VALUES).item() == 0.25 + 0.5 * 2
    assert dqn(one_row(terminated=True), VALUES).item() == 0.25
    assert dqn(one_row(truncated=True), VALUES).item() == 0.25 + 0.5 * 2
    assert dqn(one_row(two=True), VALUES).item() == 0.25 + 0.25 * 2
    assert replace(dqn, double=True)(one_row(), VALUES).item() == 0.25 + 0.5 * 1  # the online network takes action 1
    assert replace(dqn, next_net="online")(one_row(), VALUES).item() == 0.25 + 0.5 * 6
    gap = as_claim("max", "gap", {"alpha": 0.5, "gamma": 0.5})
    assert gap(one_row(), VALUES).item() == 0.25 + 0.5 * 2 - 0.5 * 0.5
    mask = torch.tensor([[True, True], [False, True]])
    assert dqn(one_row(), VALUES._replace(mask=mask)).item() == 0.25 + 0.5 * 1


def test_the_soft_ones_are_those_of_the_equations() -> None:
    claim, q = as_claim("entropy", "munchausen", NUMBERS), VALUES.target
    bonus = munchausen_bonus(scaled_log_policy(q, 0.5)[0, 1], 0.6, -0.4)
    expected = 0.25 + bonus + 0.9 * soft_value(q, 0.5)[1]
    torch.testing.assert_close(claim(one_row(), VALUES)[0], expected)
    sparse = as_claim("sparsemax", "none", NUMBERS)
    value, _ = Tsallis(0.5).value_and_log_policy(q)
    torch.testing.assert_close(sparse(one_row(), VALUES)[0], 0.25 + 0.9 * value[1])
    prior = as_claim("prior", "none", NUMBERS | {"prior": (0.25, 0.75)})
    log_prior = torch.tensor([0.25, 0.75]).double().log()
    torch.testing.assert_close(prior(one_row(), VALUES)[0], 0.25 + 0.9 * soft_value(q, 0.5, log_prior=log_prior)[1])


def test_critics_and_an_actor() -> None:
    spread = torch.tensor([[0.0, 0.0], [1.0, -3.0]]).double()
    policy = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]).double()
    claim = replace(as_claim("entropy", "none", NUMBERS), actor=True, cost_weight=0.0)
    given = VALUES._replace(policy=policy, spread=spread)
    # q = (2, 1) at s', the second critic 1 above it, the first 3 above it; pi = (3/4, 1/4)
    for critics, q in (("min", (2, 1)), ("mean", (2.5, 2.5)), ("max", (3, 4)), ("first", (2, 4))):
        expected = 0.25 + 0.9 * (0.75 * q[0] + 0.25 * q[1])
        torch.testing.assert_close(replace(claim, critics=critics)(one_row(), given).item(), expected)


def test_sparsemax() -> None:
    x = torch.tensor([[0.1, 0.0, -2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double()
    expected = torch.tensor([[0.55, 0.45, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3]).double()
    torch.testing.assert_close(sparsemax(x), expected)


def test_mistaken_parts_by_hand() -> None:
    dqn, inside = Target(gamma=0.5), {"terminated": True}
    assert replace(dqn, ends="truncated")(one_row(**inside), VALUES).item() == 0.25 + 0.5 * 2
    assert replace(dqn, ends="truncated")(one_row(truncated=True), VALUES).item() == 0.25
    assert replace(dqn, ends="going")(one_row(), VALUES).item() == 0.25
    assert replace(dqn, ends="going")(one_row(**inside), VALUES).item() == 0.25 + 0.5 * 2
    assert replace(dqn, reward_at_end=False)(one_row(**inside), VALUES).item() == 0.0
    assert replace(dqn, value_state="here")(one_row(), VALUES).item() == 0.25 + 0.5 * 1
    # the target network takes action 0, whose online value is 5
    assert replace(dqn, double=True, swapped=True)(one_row(), VALUES).item() == 0.25 + 0.5 * 5
    soft = replace(as_claim("entropy", "none", NUMBERS), value="logsumexp(q / tau)")
    expected = 0.25 + 0.9 * (VALUES.target[1] / 0.5).logsumexp(-1)
    torch.testing.assert_close(soft(one_row(), VALUES)[0], expected)


# -- distances ------------------------------------------------------------------------------------------------------


ERROR = torch.linspace(-3, 2, 30, dtype=torch.float64)
LOSSES: dict[str, Any] = {
    "squared": lambda d: 0.5 * d.square(),
    "huber": lambda d: F.smooth_l1_loss(d, 0 * d, reduction="none"),
    "huber-0.3": lambda d: 5 * F.huber_loss(d, 0 * d, reduction="none", delta=0.3),
    "huber-beta": lambda d: F.smooth_l1_loss(d, 0 * d, reduction="none", beta=2.0),
    "absolute": lambda d: 2 * d.abs(),
    "log cosh": lambda d: d.cosh().log(),
    "clipped": lambda d: d.clamp(-1, 1).square(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_distance_is_known_by_its_values(name: str) -> None:
    error = ERROR.clone().requires_grad_()
    loss = LOSSES[name](error)
    (slope,) = torch.autograd.grad(loss.sum(), error)
    found = fitted(ERROR, loss.detach(), slope, 1e-6)
    assert found is not None and found.name == name.split("-")[0]
    torch.testing.assert_close(found(ERROR), loss.detach())
    assert fitted(ERROR + 0.01, loss.detach(), slope, 1e-6) is None


def test_other_distances_are_not_known() -> None:
    assert fitted(ERROR, ERROR.abs() ** 1.5, ERROR, 1e-6) is None
    assert fitted(ERROR, 0 * ERROR, 0 * ERROR, 1e-6) is None


# -- claims ---------------------------------------------------------------------------------------------------------


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
def test_our_losses_are_known_by_their_names(name: str, method: str, head: str) -> None:
    loss = getattr(objectives, name)
    assert (guessed_method(loss), guessed_head(loss, method)) == (method, head)


def test_torchrls_losses_and_plain_ones_are_known_too() -> None:
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
    """Invalid losses: None, or a number without a gradient."""

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
        claim = as_claim(value, bonus, {"tau": 0.5, "alpha": 0.6, "clip_min": -0.4, "gamma": 0.9})
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
