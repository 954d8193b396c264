"""Target updates: exact period, exact rate, and they follow the loss across devices and dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchrl_reg.objectives import HardTargetUpdate, MunchausenDQNLoss, PolyakTargetUpdate


def build(cases: Any) -> Any:
    case = cases["m_dqn"]
    return MunchausenDQNLoss(case.actor(), **case.kwargs)


def bias(params: Any) -> torch.Tensor:
    return params["module", "0", "module", "2", "bias"].detach()


@pytest.mark.parametrize("period", [1, 3])
def test_hard_update_copies_on_exactly_every_period(cases: Any, period: int) -> None:
    loss = build(cases)
    update = HardTargetUpdate(loss, period_updates=period)
    copied = []
    for count in range(1, 3 * period + 1):
        with torch.no_grad():
            for p in loss.parameters():
                p.add_(1.0)
        update.step()
        if torch.equal(bias(loss.target_value_network_params), bias(loss.value_network_params)):
            copied.append(count)
    assert copied == [period, 2 * period, 3 * period]


def test_polyak_rate_also_after_a_cast(cases: Any) -> None:
    loss = build(cases)
    update = PolyakTargetUpdate(loss, rate=0.25)
    loss.double()
    before = bias(loss.target_value_network_params).clone()
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(2.0)
    update.step()
    torch.testing.assert_close(bias(loss.target_value_network_params), before + 0.5)


def test_counter_is_restored(cases: Any) -> None:
    first, second = (HardTargetUpdate(build(cases), period_updates=3) for _ in range(2))
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.counter == 1


def test_bad_arguments(cases: Any) -> None:
    with pytest.raises(ValueError, match="period_updates must be an integer >= 1, got 0"):
        HardTargetUpdate(build(cases), period_updates=0)
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got 0"):
        PolyakTargetUpdate(build(cases), rate=0)


@pytest.mark.parametrize("kind", [HardTargetUpdate, PolyakTargetUpdate])
def test_a_cast_between_steps_is_followed(cases: Any, kind: Any) -> None:
    loss = build(cases)
    update = kind(loss, **({"period_updates": 1} if kind is HardTargetUpdate else {"rate": 1.0}))
    for cast in (loss.double, loss.bfloat16, loss.float):
        update.step()
        cast()
        with torch.no_grad():
            for p in loss.parameters():
                p.add_(2.0)
        update.step()
        online, target = (dict(p.items(True, True)) for p in (loss.value_network_params, loss._target_params()))
        assert all(target[key].equal(tensor) for key, tensor in online.items())


def test_parameters_given_other_memory_are_followed(cases: Any) -> None:
    """As ``vector_to_parameters`` gives it: the same parameters, of which one or all lie elsewhere."""
    loss = build(cases)
    update = PolyakTargetUpdate(loss, rate=1.0)
    for chosen in ([0], range(4)):
        update.step()
        parameters = list(loss.parameters())
        for i in chosen:
            parameters[i].data = parameters[i].data + 5.0
        update.step()
        targets = list(loss.target_value_network_params.values(True, True))
        assert all(
            torch.equal(p, t) for p, t in zip(loss.value_network_params.values(True, True), targets, strict=True)
        )


@pytest.mark.parametrize("bad", [True, "x", None, 0, 1.5])
def test_bad_rates_and_periods(cases: Any, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \(0, 1\], got"):
        PolyakTargetUpdate(build(cases), rate=bad)
    with pytest.raises(ValueError, match="period_updates must be an integer >= 1, got"):
        HardTargetUpdate(build(cases), period_updates=bad)
