"""Lambda-returns as people write them: right ones, and each known mistake."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchrl.objectives import DQNLoss
from wrong_losses import DQN

from torchrl_reg.functional import q_lambda_return
from torchrl_reg.testing import CheckError, check_lambda_return, check_loss
from torchrl_reg.testing.lambda_returns import Returns


def right(rewards: Any, next_values: Any, terminated: Any, truncated: Any, gamma: float, lam: float) -> Any:
    """The rlax way: from the back, one step at a time."""
    later, found = next_values[-1], []
    for t in reversed(range(len(rewards))):
        mixed = next_values[t] + lam * (later - next_values[t]) * (~(terminated | truncated)[t]).double()
        later = rewards[t] + gamma * (~terminated[t]).double() * mixed
        found.insert(0, later)
    return torch.stack(found)


def of_states(rewards: Any, values: Any, last_value: Any, dones: Any, gamma: float, lmbda: float) -> Any:
    """CleanRL's pqn.py after its pull request 494: values of s_t, and of what follows the data."""
    returns = torch.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        going = 1.0 - dones[t].double()
        if t == len(rewards) - 1:
            returns[t] = rewards[t] + gamma * last_value * going
        else:
            mixed = lmbda * returns[t + 1] + (1 - lmbda) * values[t + 1]
            returns[t] = rewards[t] + gamma * mixed * going
    return returns


def ours(reward: Any, next_value: Any, dones: Any, gamma: float, lmbda: float) -> Any:
    value = next_value.masked_fill(dones, 0.0)
    batch_first = [x.transpose(0, 1) for x in (reward, value, torch.zeros_like(value), dones)]
    return q_lambda_return(*batch_first, gamma=gamma, lmbda=lmbda).transpose(0, 1)


def joined(r: Any, v: Any, d: Any, gamma: float, lam: float) -> Any:
    """Values of all states, the last one included."""
    return of_states(r, v[:-1], v[-1], d, gamma, lam)


def published(rewards: Any, max_q: Any, last_q: Any, dones: Any, gamma: float, lam: float) -> Any:
    """purejaxql's scripts for gymnax and MinAtar, as in its issue 12: the scan starts with the last state's value."""
    going = 1.0 - dones.double()
    returns = rewards[-1] + gamma * going[-1] * last_q
    carried, found = last_q * going[-1], [returns]
    for t in reversed(range(len(rewards) - 1)):
        bootstrap = rewards[t] + gamma * going[t] * carried
        returns = going[t] * (bootstrap + gamma * lam * (returns - carried)) + (1 - going[t]) * rewards[t]
        carried = max_q[t]
        found.insert(0, returns)
    return torch.stack(found)


def value_of_s(rewards: Any, values: Any, last_value: Any, dones: Any, gamma: float, lmbda: float) -> Any:
    """V(s_t) where V(s_{t+1}) belongs."""
    returns = torch.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        after = last_value if t == len(rewards) - 1 else lmbda * returns[t + 1] + (1 - lmbda) * values[t]
        returns[t] = rewards[t] + gamma * after * (1.0 - dones[t].double())
    return returns


def leaking(rewards: Any, next_values: Any, dones: Any, gamma: float, lmbda: float) -> Any:
    """CleanRL's first pqn.py: the value is cut at an end, the return is not."""
    later, found = next_values[-1], []
    for t in reversed(range(len(rewards))):
        value = next_values[t] * (1.0 - dones[t].double())
        later = rewards[t] + gamma * (value if t == len(rewards) - 1 else (1 - lmbda) * value + lmbda * later)
        found.insert(0, later)
    return torch.stack(found)


def parts(**changed: Any) -> Any:
    def made(rewards: Any, next_values: Any, terminated: Any, truncated: Any, gamma: float, lmbda: float) -> Any:
        done = terminated | truncated
        numbers = {"gamma": gamma, "lmbda": lmbda, **changed}
        return Returns(**numbers)(rewards, next_values, next_values, terminated, done)

    return made


WRONG = {
    published: "wrong state in the lambda-return",
    value_of_s: "wrong state in the lambda-return",
    leaking: "episodes leak",
    parts(cut=False): "episodes leak",
    parts(zero="done"): "no bootstrap at truncation",
    parts(zero="never"): "bootstrap after a terminal state",
    parts(lmbda=0.0): "lambda ignored",
    parts(last=False): "no bootstrap at the end of the data",
    parts(gamma=1.0): "gamma missing",
}


@pytest.mark.parametrize("function", [right, of_states, ours, joined, parts()])
def test_right_ones_pass(function: Any) -> None:
    report = check_lambda_return(function)
    assert report.passed and report.errors == [], str(report)


@pytest.mark.parametrize(("function", "name"), WRONG.items(), ids=[f"{f.__name__}-{n}" for f, n in WRONG.items()])
def test_wrong_ones_are_named(function: Any, name: str) -> None:
    report = check_lambda_return(function)
    assert not report.passed and report.errors == [name], str(report)


def test_a_recursion_by_hand() -> None:
    """Two steps, gamma .5, lambda .5, the first of cost 0 and the second of cost -1."""
    column = [torch.tensor(x).double().unsqueeze(-1) for x in ([1.0, 1.0], [2.0, 4.0], [0.0, -1.0])]
    no = torch.zeros(2, 1, dtype=torch.bool)
    got = Returns(0.5, 0.5)(column[0], column[1], column[1], no, no, column[2])
    # G_1 = 1 + .5 * 4 = 3; G_0 = 1 + .5 (.5 * 2 + .5 (3 + 1)) = 2.5
    assert got.flatten().tolist() == [2.5, 3.0]


def test_an_unknown_mistake_has_no_name() -> None:
    report = check_lambda_return(lambda rewards, values, last_value, dones, gamma, lmbda: 0 * rewards)
    assert not report.passed and report.errors == []


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda rewards, values, speed: rewards, "got 'speed'"),
        (lambda rewards, gamma: rewards, "must take rewards and values, got parameters rewards, gamma"),
        (lambda rewards, values: rewards[0], r"must return a tensor \(9, 3\), got torch.Size\(\[3\]\)"),
    ],
)
def test_functions_that_cannot_be_checked(function: Any, message: str) -> None:
    with pytest.raises(CheckError, match=message):
        check_lambda_return(function)


class LambdaDQN(DQN):
    """A loss of sequences ``[1, T]``: PQN's, with a target network."""

    made = staticmethod(right)

    def make_value_estimator(self, value_type: Any = None, **numbers: Any) -> None:
        self.numbers = numbers

    def target(self, data: Any) -> Tensor:
        if data.ndim == 1:
            return super().target(data)
        flags = [data["next", name].squeeze(-1).transpose(0, 1) for name in ("reward", "terminated", "truncated")]
        value = self.bootstrap(data).transpose(0, 1)
        returns = type(self).made(flags[0], value, flags[1], flags[2], self.numbers["gamma"], self.numbers["lmbda"])
        return returns.transpose(0, 1)


class LeakingDQN(LambdaDQN):
    made = staticmethod(parts(cut=False))


class WrongStateDQN(LambdaDQN):
    made = staticmethod(parts(value="last"))


class NoEndDQN(LambdaDQN):
    made = staticmethod(parts(last=False))


class OneStepDQN(LambdaDQN):
    made = staticmethod(parts(lmbda=0.0))


class PlainTraceDQN(LambdaDQN):
    """The soft value in a plain TD(lambda), as SACLoss has it with that estimator."""

    def bootstrap(self, data: Any) -> Tensor:
        return 0.5 * (self.q(self.target_network, data["next"]) / 0.5).logsumexp(-1)


@pytest.mark.parametrize(
    ("cls", "method", "errors"),
    [
        (LambdaDQN, "dqn", []),
        (LeakingDQN, "dqn", ["episodes leak"]),
        (WrongStateDQN, "dqn", ["wrong state in the lambda-return"]),
        (NoEndDQN, "dqn", ["no bootstrap at the end of the data"]),
        (OneStepDQN, "dqn", ["lambda ignored"]),
        (PlainTraceDQN, "soft_dqn", ["step entropy missing in the lambda-return"]),
    ],
)
def test_a_loss_of_sequences(cls: Any, method: str, errors: list[str]) -> None:
    report = check_loss(lambda network: cls(network), method=method, tau=0.5, gamma=0.9)
    check = report.checks[-1]
    assert (check.name, check.status) == ("lambda-return", "fail" if errors else "pass")
    assert report.errors == errors, str(report)


def test_torchrls_own_lambda_return_is_right() -> None:
    check = check_loss(DQNLoss).checks[-1]
    assert (check.name, check.status) == ("lambda-return", "pass")
