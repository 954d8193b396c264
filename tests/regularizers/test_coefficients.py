"""Coefficients: fixed, scheduled, learnt by dual ascent, following the Bellman error."""

from __future__ import annotations

import copy

import pytest
import torch

from torchrl_reg.regularizers import BellmanErrorCoefficient, Coefficient, DualCoefficient, Entropy
from torchrl_reg.regularizers.checks import check_weight

DUAL = {"target": 0.7, "rises": "below"}


def test_a_value_is_exact_and_stays_so() -> None:
    module = torch.nn.Sequential(Coefficient(0.1))
    for cast in ("float", "half", "double"):
        getattr(module, cast)()
        assert module[0].value.dtype == torch.float64 and float(module[0].value) == 0.1
    held = module[0].value.data_ptr()
    module[0].assign(0.3)
    module[0].assign(torch.tensor(0.25))
    assert float(module[0].value) == 0.25 and module[0].value.data_ptr() == held
    assert module.to("meta")[0].value.device.type == "meta"


class _NoFloat64(torch.nn.Module):
    """Stands for a device without float64, whose ``.to`` raises TypeError."""

    @staticmethod
    def move(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()


def test_a_device_without_float64_gets_float32() -> None:
    tau = Coefficient(0.5)
    tau._apply(_NoFloat64.move)
    assert tau.value.dtype == torch.float32 and float(tau.value) == 0.5


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), torch.tensor(-1.0), "a", None])
def test_bad_values_are_refused_wherever_they_are_set(bad: object) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number > 0"):
        Coefficient(bad, name="weight")
    tau = Coefficient(0.5, name="weight")
    with pytest.raises(ValueError, match="weight must be a finite number > 0"):
        tau.assign(bad)
    with pytest.raises(ValueError, match="weight must be"):
        DualCoefficient(bad, **DUAL, name="weight")


@pytest.mark.parametrize("rises", ["above", "below"])
def test_dual_ascent_holds_a_statistic_at_its_target(rises: str) -> None:
    """The statistic falls in the coefficient for "above" (a KL weight) and rises for "below" (a temperature)."""
    weight = DualCoefficient(1.0, target=0.7, rises=rises)
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.02)
    for _ in range(800):
        value = weight.value
        assert not value.requires_grad
        statistic = 1.0 / (1.0 + value) if rises == "above" else value / (1.0 + value)
        optimizer.zero_grad()
        weight.objective(statistic).backward()
        optimizer.step()
    torch.testing.assert_close(statistic, torch.tensor(0.7), rtol=0, atol=1e-3)


def test_a_learnt_one_is_assigned_saved_and_copied_too() -> None:
    tau = DualCoefficient(1.0, **DUAL)
    tau.assign(0.25)
    torch.testing.assert_close(tau.value, torch.tensor(0.25))
    other = DualCoefficient(3.0, **DUAL)
    other.load_state_dict(tau.state_dict())
    twin = copy.deepcopy(tau)
    twin.assign(5.0)
    assert other.value == tau.value and twin.value != tau.value
    entropy = Entropy(tau)
    entropy.tau = 0.5
    assert tau.value == 0.5 and list(entropy.parameters()) == [tau.log_value]
    with pytest.raises(ValueError, match="rises must be 'above' or 'below', got 'up'"):
        DualCoefficient(1.0, target=0.5, rises="up")
    with pytest.raises(ValueError, match="target must be a finite number"):
        DualCoefficient(1.0, target=float("nan"), rises="above")


@pytest.mark.parametrize("rises", ["above", "below"])
def test_the_statistic_gets_no_gradient(rises: str) -> None:
    weight = DualCoefficient(0.5, target=0.7, rises=rises)
    statistic = torch.tensor([0.3, 1.5], requires_grad=True)
    weight.objective(statistic).sum().backward()
    sign = -1.0 if rises == "above" else 1.0
    torch.testing.assert_close(weight.log_value.grad, torch.tensor(sign * 0.4))
    assert statistic.grad is None


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_switches_a_coefficient_on_and_off(assign: bool) -> None:
    on, off = (Coefficient(value, name="alpha", check=check_weight) for value in (0.5, 0.0))
    states = on.state_dict(), off.state_dict()
    states = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    off.load_state_dict(states[0], assign=assign)
    on.load_state_dict(states[1], assign=assign)
    assert (off.is_on, float(off.value), on.is_on, float(on.value)) == (True, 0.5, False, 0.0)


def test_the_bellman_error_is_followed_both_ways() -> None:
    error = torch.tensor(0.5, dtype=torch.float64)
    epsilon = BellmanErrorCoefficient(1.0, rate=0.25, scale=0.5)
    epsilon.observe(error)
    assert float(epsilon.value) == 0.75 * 1.0 + 0.25 * 0.25
    beta = BellmanErrorCoefficient(1.0, rate=0.25, scale=0.5, inverse=True)
    beta.observe(error)
    assert float(beta.value) == 0.75 * 1.0 + 0.25 * 1.0
    last = BellmanErrorCoefficient(1.0, rate=1.0)
    last.observe(error)
    assert float(last.value) == 0.5
    bounded = BellmanErrorCoefficient(1.0, rate=1.0, low=0.5, high=2.0)
    for seen, kept in ((100.0, 2.0), (0.001, 0.5)):
        bounded.observe(seen)
        assert float(bounded.value) == kept
    assert Coefficient(0.5).observe(error) is None and Coefficient(0.5).objective(error) is None
