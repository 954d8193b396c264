"""Coefficients that are fixed, or scheduled by assignment."""

from __future__ import annotations

import pytest
import torch

from torchrl_reg.regularizers import Coefficient, DualCoefficient
from torchrl_reg.regularizers.checks import check_weight


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


def test_a_device_without_float64_gets_float32() -> None:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor.clone()

    tau = Coefficient(0.5)
    tau._apply(move)
    assert tau.value.dtype == torch.float32 and float(tau.value) == 0.5


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), torch.tensor(-1.0), "a", None])
def test_bad_values_are_refused_wherever_they_are_set(bad: object) -> None:
    with pytest.raises(ValueError, match="weight must be a finite number > 0"):
        Coefficient(bad, name="weight")
    with pytest.raises(ValueError, match="weight must be a finite number > 0"):
        Coefficient(0.5, name="weight").assign(bad)
    with pytest.raises(ValueError, match="weight must be"):
        DualCoefficient(bad, target=0.7, rises="below", name="weight")


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_switches_a_coefficient_on_and_off(assign: bool) -> None:
    on, off = (Coefficient(value, name="alpha", check=check_weight) for value in (0.5, 0.0))
    states = [{name: tensor.clone() for name, tensor in each.state_dict().items()} for each in (on, off)]
    off.load_state_dict(states[0], assign=assign)
    on.load_state_dict(states[1], assign=assign)
    assert (off.is_on, float(off.value), on.is_on, float(on.value)) == (True, 0.5, False, 0.0)
