"""Swapped parameters (functional calls, ensembles by vmap) are those that count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parameter_sets import check_assignment, check_to_module, check_vmap, leaves, value_and_gradient, value_with
from tensordict import TensorDict


@pytest.mark.parametrize("check", [check_vmap, check_to_module, check_assignment], ids=lambda f: f.__name__[6:])
def test_swapped_parameters_count(case: Any, batch: Any, check: Any) -> None:
    check(case.loss(), case.loss(case.actor(seed=9)), batch(9))


def test_targets_alone_may_be_swapped(case: Any, batch: Any) -> None:
    loss, expected = case.loss(), case.loss()
    _, others = leaves(case.loss(case.actor(seed=9)))
    targets = {key: tensor for key, tensor in others.items() if key[0].startswith("target_")}
    for key, tensor in TensorDict.from_module(expected).items(True, True):
        tensor.data.copy_(targets.get(key, tensor))
    before, data = value_and_gradient(loss, batch(9))[0], batch(9)
    swapped = value_with(loss, data, {}, targets)
    torch.testing.assert_close(swapped, value_and_gradient(expected, data)[0])
    assert (swapped - before).abs() > 1e-4
    torch.testing.assert_close(value_and_gradient(loss, data)[0], before)


def test_without_a_target_network(cases: Any, batch: Any) -> None:
    actors = [cases["m_dqn"].actor(seed=seed) for seed in (0, 9)]
    losses = [cases["m_dqn"].cls(actor, delay_value=False, **cases["m_dqn"].kwargs) for actor in actors]
    check_vmap(*losses, batch(9))
    check_to_module(*losses, batch(9))


def test_a_prior_network(cases: Any, batch: Any) -> None:
    from tensordict.nn import TensorDictModule

    def loss(seed: int) -> Any:
        torch.manual_seed(seed)
        prior = TensorDictModule(torch.nn.Linear(4, 3), in_keys=["observation"], out_keys=["prior_logits"])
        return cases["mirl"].loss(cases["mirl"].actor(seed=seed), prior=None, prior_network=prior)

    check_vmap(loss(0), loss(9), batch(9))
    check_to_module(loss(0), loss(9), batch(9))


def test_the_users_network_is_left_alone(cases: Any, batch: Any) -> None:
    actor = cases["m_dqn"].actor()
    loss, other = cases["m_dqn"].loss(actor), cases["m_dqn"].loss(cases["m_dqn"].actor(seed=9))
    held = list(actor.parameters())
    check_to_module(loss, other, batch(9))
    check_assignment(loss, other, batch(9))
    assert all(p is q for p, q in zip(held, actor.parameters(), strict=True))


def test_a_swapped_coefficient_counts(cases: Any, batch: Any) -> None:
    check_to_module(cases["m_dqn"].loss(), cases["m_dqn"].loss(tau=0.9, alpha=0.2, clip_min=-1.0), batch(9))
