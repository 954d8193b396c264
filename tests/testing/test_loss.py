"""Every planted error is named, and none in a correct loss.

Discrete soft actor-critics: the planted errors are named, TorchRL's and CleanRL's have none.
"""

from __future__ import annotations

from typing import Any

import pytest
import wrong_actor_critics
import wrong_distributions
import wrong_styles
from torchrl.objectives import DiscreteSACLoss, DistributionalDQNLoss, DQNLoss
from wrong_actor_critics import GAMMA, TAU, WRONG, DiscreteSAC, LossPerCritic
from wrong_losses import NUMBERS, PLANTED, RIGHT

from torchrl_reg import objectives
from torchrl_reg.testing import KNOWN_ERRORS, check_loss

NAMED = [(name, cls, method) for name, cases in PLANTED.items() for cls, method in cases]
ODD = {"tau": 0.5, "alpha": 0.6, "clip_min": -0.4}
OURS: list[tuple[str, dict[str, Any]]] = [
    ("SoftDQNLoss", ODD),
    ("MunchausenDQNLoss", ODD),
    ("MunchausenDQNLoss", {}),
    ("SoftDQNLoss", {**ODD, "double": True}),
    ("AdvantageLearningLoss", ODD),
    ("AdvantageLearningLoss", {"alpha": 0.6, "method": "pal"}),
    ("SparseDQNLoss", ODD),
    ("QLearningLoss", {}),
    ("DiscreteVIRELLoss", ODD),
    ("MutualInformationDQNLoss", {"tau": 0.5, "prior": (0.5, 0.3, 0.2)}),
    ("CategoricalDQNLoss", {}),
    ("MunchausenCategoricalLoss", ODD),
    ("QuantileRegressionDQNLoss", {}),
    ("IQNLoss", {}),
    ("MunchausenIQNLoss", ODD),
    ("MutualInformationIQNLoss", {"tau": 0.5}),
]


@pytest.mark.parametrize(("name", "cls", "method"), NAMED, ids=[f"{name}-{cls.__name__}" for name, cls, _ in NAMED])
def test_a_planted_error_is_named(name: str, cls: Any, method: str) -> None:
    claims = {name: getattr(cls, name, False) for name in ("masks", "weights")}
    report = check_loss(lambda network: cls(network), method=method, **claims, **NUMBERS)
    expected = [name]
    if getattr(cls, "masks", False):
        expected = ["padding counts"] if name == "padding counts" else ["action mask ignored", "padding counts"]
    assert not report.passed
    assert report.errors == expected, str(report)


def test_the_planted_errors_are_all_that_a_loss_of_single_steps_can_have() -> None:
    sequences = {"wrong state in the lambda-return", "episodes leak", "lambda ignored"}
    sequences |= {"no bootstrap at the end of the data", "step entropy missing in the lambda-return"}
    assert set(PLANTED) | sequences | set(wrong_actor_critics.WRONG.values()) == set(KNOWN_ERRORS)


@pytest.mark.parametrize(
    ("cls", "method"),
    (RIGHT | wrong_styles.RIGHT | wrong_distributions.RIGHT).items(),
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_plain_loss_has_none(cls: Any, method: str) -> None:
    report = check_loss(lambda network: cls(network), method=method, **NUMBERS)
    assert report.passed and report.errors == [], str(report)


@pytest.mark.parametrize(("name", "numbers"), OURS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(OURS)])
def test_our_losses_have_none(name: str, numbers: dict[str, Any]) -> None:
    report = check_loss(getattr(objectives, name), **numbers)
    assert report.passed and report.errors == [], str(report)


def test_only_those_with_a_policy_of_continuous_actions_are_left_out() -> None:
    continuous = {"ImplicitQLoss", "PathConsistencyLoss", "SoftActorCriticLoss", "SoftQLearningLoss", "VIRELLoss"}
    exported = {name for name in objectives.__all__ if name.endswith("Loss")}
    assert {name for name, _ in OURS} == exported - continuous


@pytest.mark.parametrize("double", [False, True])
def test_torchrls_dqn_has_none(double: bool) -> None:
    report = check_loss(DQNLoss, double=double)
    assert report.passed and report.errors == [], str(report)


def test_torchrls_c51_has_none_but_takes_no_batch_of_one() -> None:
    """Its ``action.shape[-1] != 1`` takes one index for a column of them."""
    report = check_loss(DistributionalDQNLoss)
    assert report.errors == []
    assert [check.name for check in report.checks if check.status == "fail"] == ["batch of one"], str(report)
    assert check_loss(DistributionalDQNLoss, action_space="one-hot").passed


# -- actor-critics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "name"), WRONG.items(), ids=lambda each: getattr(each, "__name__", each))
def test_a_planted_error_of_an_actor_critic_is_named(cls: Any, name: str) -> None:
    report = check_loss(lambda *networks: cls(*networks), method="discrete_sac", tau=TAU, gamma=GAMMA)
    assert not report.passed and report.errors == [name], str(report)


@pytest.mark.parametrize("cls", [DiscreteSAC, LossPerCritic])
def test_cleanrls_actor_critic_has_none(cls: Any) -> None:
    report = check_loss(lambda *networks: cls(*networks), method="discrete_sac", tau=TAU, gamma=GAMMA)
    assert report.passed and report.errors == [], str(report)


@pytest.mark.parametrize("action_space", ["categorical", "one-hot"])
def test_torchrls_actor_critic_has_none(action_space: str) -> None:
    report = check_loss(DiscreteSACLoss, tau=TAU, action_space=action_space)
    assert report.passed and report.errors == [], str(report)
    assert [check.status for check in report.checks if check.name == "actor's gradient"] == ["pass"]
