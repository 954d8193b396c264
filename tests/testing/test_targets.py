"""Targets by hand, and that the mistakes differ from them and from each other."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from torchrl_reg.functional import munchausen_bonus, scaled_log_policy, soft_value
from torchrl_reg.regularizers import Tsallis
from torchrl_reg.testing.claims import made_claim
from torchrl_reg.testing.targets import Rows, Target, Values, sparsemax

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
    gap = made_claim("max", "gap", {"alpha": 0.5, "gamma": 0.5})
    assert gap(one_row(), VALUES).item() == 0.25 + 0.5 * 2 - 0.5 * 0.5
    mask = torch.tensor([[True, True], [False, True]])
    assert dqn(one_row(), VALUES._replace(mask=mask)).item() == 0.25 + 0.5 * 1


def test_the_soft_ones_are_those_of_the_equations() -> None:
    claim, q = made_claim("entropy", "munchausen", NUMBERS), VALUES.target
    bonus = munchausen_bonus(scaled_log_policy(q, 0.5)[0, 1], 0.6, -0.4)
    expected = 0.25 + bonus + 0.9 * soft_value(q, 0.5)[1]
    torch.testing.assert_close(claim(one_row(), VALUES)[0], expected)
    sparse = made_claim("sparsemax", "none", NUMBERS)
    value, _ = Tsallis(0.5).value_and_log_policy(q)
    torch.testing.assert_close(sparse(one_row(), VALUES)[0], 0.25 + 0.9 * value[1])
    prior = made_claim("prior", "none", NUMBERS | {"prior": (0.25, 0.75)})
    log_prior = torch.tensor([0.25, 0.75]).double().log()
    torch.testing.assert_close(prior(one_row(), VALUES)[0], 0.25 + 0.9 * soft_value(q, 0.5, log_prior=log_prior)[1])


def test_critics_and_an_actor() -> None:
    spread = torch.tensor([[0.0, 0.0], [1.0, -3.0]]).double()
    policy = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]]).double()
    claim = replace(made_claim("entropy", "none", NUMBERS), actor=True, cost_weight=0.0)
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
    soft = replace(made_claim("entropy", "none", NUMBERS), value="logsumexp(q / tau)")
    expected = 0.25 + 0.9 * (VALUES.target[1] / 0.5).logsumexp(-1)
    torch.testing.assert_close(soft(one_row(), VALUES)[0], expected)
