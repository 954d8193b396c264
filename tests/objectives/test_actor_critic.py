"""Losses over an actor and critics: parameters that each loss trains, and unusual critics."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from critic_cases import CASES, lagged
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torchrl.modules import ProbabilisticActor, ValueOperator


def call(loss: Any, data: Any) -> Any:
    torch.manual_seed(3)  # actions are sampled
    return loss(data)


def losses(loss: Any, data: Any) -> Tensor:
    out = call(loss, data)
    return torch.stack([out[name] for name in loss.out_keys if name.startswith("loss")])


def test_the_entropy_is_a_mean_over_the_rows_that_count() -> None:
    """A mask and its complement add up to all rows, with the same drawn actions."""
    data, mask = CASES["sac"].batch(8), torch.tensor([True, True, False, True, False, True, True, True])
    found = []
    for kept in (mask, ~mask, mask | ~mask):
        data["collector", "mask"] = kept.unsqueeze(-1)
        found.append(call(CASES["sac"].loss(), data.clone())["entropy"])
    torch.testing.assert_close((6 * found[0] + 2 * found[1]) / 8, found[2])
    assert (found[0] - found[1]).abs() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_each_loss_reaches_its_own_network(name: str) -> None:
    """A network's parameters, or none: those of the coefficient."""
    case = CASES[name]
    loss = case.loss()
    out = call(loss, case.batch(9))
    for term in case.losses:
        loss.zero_grad()
        out[term].backward(retain_graph=True)
        for network in loss._network_names:
            for p in getattr(loss, f"{network}_params").parameters():
                reached = p.grad is not None and p.grad.abs().sum() > 0
                assert reached == (network == f"{term.removeprefix('loss_')}_network"), (term, network)
    assert not any(p.requires_grad for p in lagged(loss))


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("name", ["virel", "virel_em", "sac", "soft_q"])
def test_the_actor_learns_from_the_critics_of_now(name: str, moved: bool) -> None:
    """Updated in place or, as by ``vector_to_parameters``, given other memory."""
    loss, data, networks = CASES[name].loss(), CASES[name].batch(9), CASES[name].networks()
    before = call(loss, data)["loss_actor"]
    parameters = [p for p in loss.qvalue_network_params.values(True, True) if p.requires_grad]
    changed = 3.0 * parameters_to_vector(parameters).detach() + 1.0
    vector_to_parameters(changed, [p for critic in networks[1] for p in critic.parameters()])
    if moved:
        vector_to_parameters(changed, parameters)
    else:
        for p in parameters:
            p.data.mul_(3.0).add_(1.0)
    found = call(loss, data)["loss_actor"]
    torch.testing.assert_close(found, call(CASES[name].loss(networks), data)["loss_actor"])
    assert (found - before).abs() > 1e-3


def test_networks_that_do_more_are_called_as_modules() -> None:
    """Hooks are heard, and an actor or critics of further classes give the same numbers."""
    loss, data, calls = CASES["sac"].loss(), CASES["sac"].batch(9), list[str]()
    expected = losses(CASES["sac"].loss(), data)
    loss.actor_network.module[0].register_forward_hook(lambda *_: calls.append("actor"))
    loss.qvalue_network.critics[1].register_forward_hook(lambda *_: calls.append("critic"))
    assert torch.equal(losses(loss, data), expected)
    assert calls == ["actor", "critic", "actor"]  # the copies of critics were made before
    loss.actor_network.__class__ = type("Actor", (ProbabilisticActor,), {})
    for critic in loss.qvalue_network.critics:
        critic.__class__ = type("Operator", (ValueOperator,), {})
    assert torch.equal(losses(copy.deepcopy(loss), data), expected)
