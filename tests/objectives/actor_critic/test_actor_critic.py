"""Losses over an actor and critics: whom each loss teaches, priorities, and the temperature."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from torchrl_reg.objectives import VIRELLoss

GAMMA = 0.9
COMPILED = [
    "virel",
    "sac",
    *[pytest.param(name, marks=pytest.mark.slow) for name in ("virel_value", "sac_fixed", "soft_q")],
]


def call(loss: Any, data: Any) -> Any:
    torch.manual_seed(3)  # actions are sampled
    return loss(data)


def losses(out: Any) -> torch.Tensor:
    return torch.stack([out[name] for name in sorted(out.keys()) if name.startswith("loss")])


def value(loss: Any, data: Any) -> torch.Tensor:
    return losses(call(loss, data))


def total(loss: Any, data: Any) -> torch.Tensor:
    return value(loss, data).sum()


def test_what_is_reported_is_a_mean_over_the_rows_that_count(case: Any) -> None:
    """Those of a mask and those of its complement make up all, whose actions are drawn alike."""
    data, mask = case.batch(8), torch.tensor([True, True, False, True, False, True, True, True])
    data["observation"] += 3.0  # a row that is left out is seen as 0
    found = []
    for kept in (mask, ~mask, mask | ~mask):
        data["collector", "mask"] = kept.unsqueeze(-1)
        found.append(call(case.loss(), data.clone()))
    for name in case.reported:
        torch.testing.assert_close((6 * found[0][name] + 2 * found[1][name]) / 8, found[2][name])


def test_priorities_and_their_weights(case: Any) -> None:
    """The largest error of the critics, squared or absolute; weights count for the critics alone."""
    if case.kwargs.get("mode") == "em":
        pytest.skip("the literal M-step is no sum over rows")
    data = case.batch(9)
    none = call(case.loss(reduction="none"), data)
    larger, summed = data["td_error"].squeeze(-1) ** (2 / case.power), none["loss_qvalue"].detach()
    if case.critics == 1:
        torch.testing.assert_close(larger, summed)
    else:
        assert (larger <= summed).all() and (case.critics * larger >= summed).all()
    weights = torch.linspace(0.2, 2.0, 9)
    weighted = case.batch(9)
    weighted["priority_weight"] = weights
    got = call(case.loss(), weighted)
    torch.testing.assert_close(got["loss_qvalue"], (weights * none["loss_qvalue"]).sum() / weights.sum())
    for name in set(case.losses) - {"loss_qvalue"}:
        torch.testing.assert_close(got[name], none[name].mean())


def test_each_loss_reaches_its_own_network(case: Any, lagged_tensors: Any) -> None:
    for name, owner in (
        ("loss_actor", "actor"),
        ("loss_qvalue", "qvalue"),
        ("loss_value", "value"),
        ("loss_alpha", ""),
    ):
        loss = case.loss()
        if name not in loss.out_keys:
            continue
        call(loss, case.batch(9))[name].backward()
        for network in loss._network_names:
            for p in getattr(loss, f"{network}_params").parameters():
                reached = p.grad is not None and p.grad.abs().sum() > 0
                assert reached == (network == f"{owner}_network"), (name, network)
        assert not any(p.requires_grad for p in lagged_tensors(loss))


def test_optimizer_and_target_updates_are_seen(case: Any, lagged_tensors: Any) -> None:
    """By every part, the actor's view of the critics included."""
    loss = case.loss()
    first = call(loss, case.batch(9))
    with torch.no_grad():
        for p in loss.qvalue_network_params.parameters():
            p.mul_(1.3)
    second = call(loss, case.batch(9))
    assert all((first[name] != second[name]) == (name != "loss_alpha") for name in case.losses)
    with torch.no_grad():
        for p in lagged_tensors(loss):
            p.mul_(1.3)
    assert (call(loss, case.batch(9))["loss_qvalue"] != second["loss_qvalue"]) == (case.kwargs.get("mode") != "em")


def test_the_temperature_is_schedulable(case: Any) -> None:
    if case.kwargs.get("mode") == "em":
        pytest.skip("takes the temperature of its batch")
    loss = case.loss()
    before = call(loss, case.batch(9))
    loss.tau = 0.2
    after = call(loss, case.batch(9))
    assert before["tau"] == 0.5 and after["tau"] == pytest.approx(0.2)
    assert after["loss_actor"] != before["loss_actor"]
    assert (after["loss_qvalue"] != before["loss_qvalue"]) == (case.cls is not VIRELLoss)
    loss.make_value_estimator(gamma=0.9, tau=0.5)
    torch.testing.assert_close(losses(call(loss, case.batch(9))), losses(before))
    with pytest.raises(ValueError, match="tau must be a finite number > 0"):
        loss.tau = -1.0


def test_critics_given_other_memory_are_followed(case: Any) -> None:
    """``vector_to_parameters`` keeps the parameters and moves their memory: the actor learns from what lies there."""
    loss, twin, data = case.loss(), case.loss(), case.batch(9)
    value(loss, data)
    parameters = [p for p in loss.qvalue_network_params.values(True, True) if p.requires_grad]
    vector_to_parameters(3.0 * parameters_to_vector(parameters) + 1.0, parameters)
    for p in twin.qvalue_network_params.values(True, True):
        p.data.mul_(3.0).add_(1.0)
    torch.testing.assert_close(value(loss, data), value(twin, data))
