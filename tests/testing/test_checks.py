"""Distances, several errors at once, and unexplained deviations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torchrl.objectives import DQNLoss
from wrong_losses import ALPHA, C51, DQN, GAMMA, LOW, NUMBERS, TAU, MunchausenDQN, NeverEnds, NStepDQN

from torchrl_reg.objectives import MunchausenIQNLoss
from torchrl_reg.testing import CheckError, Report, check_loss


def of(cls: Any, method: str = "dqn", **more: Any) -> Report:
    return check_loss(lambda network: cls(network), method=method, **{**NUMBERS, **more})


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


class Distance(DQN):
    kind = staticmethod(F.mse_loss)

    def forward(self, tensordict: Any) -> TensorDict:
        with torch.no_grad():
            y = self.target(tensordict)
        return TensorDict({"loss": type(self).kind(self.predicted(tensordict), y)}, [])


@pytest.mark.parametrize(
    "kind",
    [
        F.mse_loss,
        F.smooth_l1_loss,
        F.l1_loss,
        lambda q, y: (q - y).square().mean() / 2,
        lambda q, y: 3 * F.huber_loss(q, y),
    ],
    ids=["squared", "huber", "absolute", "half", "three"],
)
def test_any_distance_will_do(kind: Any) -> None:
    report = of(type("Other", (Distance,), {"kind": staticmethod(kind)}))
    assert report.passed, str(report)
    wrong = of(type("Other", (Distance,), {"kind": staticmethod(kind), "discount": lambda self, data: 1.0}))
    assert wrong.errors == ["gamma missing"], str(wrong)


class FourErrors(MunchausenDQN):
    def bootstrap(self, data: Any) -> Any:
        return self.q(self.target_network, data["next"]).logsumexp(-1)

    def ended(self, data: Any) -> Any:
        return data["next", "done"].squeeze(-1)

    def bonus(self, data: Any) -> Any:
        return ALPHA * (TAU * self.log_pi_of(data)).clamp(LOW, 1)


def test_four_errors_at_once() -> None:
    report = of(FourErrors, "m_dqn")
    expected = {"softmax without tau", "tau missing in the TD target", "no bootstrap at truncation"}
    assert set(report.errors) == expected | {"clip [l0, 1] instead of [l0, 0]"}
    by_check = {check.name: set(check.errors) for check in report.checks}
    assert by_check["one step"] == {"softmax without tau", "tau missing in the TD target"}
    assert by_check["truncated"] == expected
    assert by_check["terminated"] == set()


class Strange(DQN):
    def bootstrap(self, data: Any) -> Any:
        return self.q(self.target_network, data["next"]).median(-1).values


def test_a_strange_loss_fails_without_a_name() -> None:
    report = of(Strange)
    assert not report.passed and report.errors == []
    found = statuses(report)
    assert (found["one step"], found["terminated"], found["truncated"]) == ("fail", "pass", "fail")
    assert found["gradient"] == "n/a" and "No known errors" in report.summary()


class WrongGradient(DQN):
    """The right value with half of its gradient."""

    def predicted(self, data: Any) -> Any:
        q = super().predicted(data)
        return q / 2 + q.detach() / 2


def test_a_gradient_that_is_not_the_derivative() -> None:
    report = of(WrongGradient)
    assert [check.name for check in report.checks if check.status == "fail"] == ["gradient"]
    (check,) = (check for check in report.checks if check.name == "gradient")
    assert check.expected == pytest.approx(2 * check.got)


def test_the_optimum_has_terminal_states_whose_values_must_not_count() -> None:
    assert statuses(of(DQN))["fixed point"] == "pass"
    assert statuses(of(NeverEnds))["fixed point"] == "fail"


class ThreeSteps(DQN):
    def discount(self, data: Any) -> Any:
        return GAMMA**3


def test_n_steps_that_the_loss_counts_itself() -> None:
    assert of(ThreeSteps, n_steps=3).passed
    wrong = of(DQN, n_steps=3)
    assert wrong.errors == ["discount of n steps"], str(wrong)
    assert statuses(of(ThreeSteps, n_steps=3))["fixed point"] == "n/a"


class TwoStepsAtMost(DQN):
    def discount(self, data: Any) -> Any:
        return GAMMA ** data.get("steps_to_next_obs", torch.ones(1)).squeeze(-1).clamp(max=2)


def test_transitions_have_different_numbers_of_steps() -> None:
    found = of(TwoStepsAtMost)
    assert [check.name for check in found.checks if check.status == "fail"] == ["n steps"], str(found)


class SumOfPairs(Distance):
    """Takes no batch of one."""

    def kind(self, y: Any) -> Any:
        if len(self) < 2:  # type: ignore[arg-type]
            raise ValueError("batch")
        return F.mse_loss(self, y, reduction="sum")  # type: ignore[arg-type]


def test_a_sum_of_rows_that_each_come_twice() -> None:
    found = of(SumOfPairs)
    assert found.errors == ["sum for mean"] and statuses(found)["batch of one"] == "fail", str(found)


class BatchStatistics(DQN):
    """Predictions less the mean of the batch: not a mean of rows."""

    def predicted(self, data: Any) -> Any:
        q = super().predicted(data)
        return q + (q - q.mean()).detach()


class AtMostTwoSteps(NStepDQN):
    def discount(self, data: Any) -> Any:
        return GAMMA ** data.get("steps_to_next_obs", torch.ones(1, dtype=torch.int64)).squeeze(-1).clamp(max=2)


def test_n_step_data_have_more_than_one_number_of_steps() -> None:
    assert [name for name, status in statuses(of(AtMostTwoSteps)).items() if status == "fail"] == ["n steps"]
    assert statuses(of(NStepDQN))["n steps"] == "pass"


class TwoRowsOrMore(DQN):
    """Takes no batch of one, so that every row is read twice."""

    def forward(self, tensordict: Any) -> TensorDict:
        assert len(tensordict) > 1, "two rows or more"
        with torch.no_grad():
            y = self.target(tensordict)
        return TensorDict({"loss": self.reduced((self.predicted(tensordict) - y).square())}, [])

    def reduced(self, loss: Any) -> Any:
        return loss.mean()


class SumOfTwoRowsOrMore(TwoRowsOrMore):
    def reduced(self, loss: Any) -> Any:
        return loss.sum()


def test_rows_that_are_read_twice() -> None:
    assert [n for n, status in statuses(of(TwoRowsOrMore)).items() if status == "fail"] == ["batch of one"]
    assert of(SumOfTwoRowsOrMore).errors == ["sum for mean"]


class OneRowAtATime(DQN):
    def target(self, data: Any) -> Any:
        return super().target(data).reshape(1)


def test_a_batch_that_raises_fails() -> None:
    (check,) = (each for each in of(OneRowAtATime).checks if each.name == "mean over a batch")
    assert check.status == "fail" and "raises RuntimeError: shape '[1]' is invalid" in check.note


@pytest.mark.parametrize(("most", "name"), [(3, "one step"), (5.5, "one step"), (10, "large values")])
def test_atoms_that_are_clipped_within_the_grid(most: float, name: str) -> None:
    cls = type("Within", (C51,), {"clipped": lambda self, z: z.clamp(-most, most)})
    assert statuses(of(cls, "c51"))[name] == "fail"


class LargeRewardsRaise(DQN):
    def target(self, data: Any) -> Any:
        assert data["next", "reward"].abs().max() < self.largest, f"rewards beyond {self.largest}"
        return super().target(data)


def test_a_transition_that_raises_is_named() -> None:
    with pytest.raises(CheckError, match="got one that raises AssertionError: rewards beyond 9, at s=.*, r=.*[.]$"):
        of(type("Raises", (LargeRewardsRaise,), {"largest": 9}))


class RewardsBeyondTheAtomsRaise(C51):
    def clipped(self, z: Any) -> Any:
        assert z.max() < 14.5, "beyond the atoms"
        return super().clipped(z)


def test_rewards_beyond_the_atoms_may_not_raise() -> None:
    (check,) = (each for each in of(RewardsBeyondTheAtomsRaise, "c51").checks if each.name == "atoms on the grid")
    assert check.status == "fail" and check.note.startswith("raises AssertionError: beyond the atoms")


def test_an_odd_number_of_fractions_is_not_compared() -> None:
    def make(network: Any) -> Any:
        loss = MunchausenIQNLoss(network, tau=TAU, alpha=ALPHA, clip_min=LOW, num_quantiles=7)
        return loss.make_value_estimator(gamma=GAMMA)

    report = check_loss(make, method="m_iqn")
    assert report.passed and statuses(report)["quantiles"] == "n/a", str(report)


def test_weights_of_a_loss_that_has_the_option() -> None:
    class Ignoring(DQNLoss):
        def _reduce_loss(self, loss: Any, **how: Any) -> Any:
            return loss.mean()

    assert "priority weights ignored" in check_loss(Ignoring).errors
    assert statuses(of(DQN))["priority weights"] == "n/a"


def test_rows_that_depend_on_each_other() -> None:
    found = statuses(of(BatchStatistics))
    assert (found["one step"], found["mean over a batch"], found["data parallelism"]) == ("pass", "fail", "fail")


def test_the_numbers_are_those_of_the_row_named() -> None:
    class Late(DQN):
        def bonus(self, data: Any) -> Any:
            return 0.125

    check = of(Late).checks[1]
    assert check.name == "terminated" and check.status == "fail" and check.note.startswith("target at s=")
    assert check.got == pytest.approx(check.expected + 0.125)
