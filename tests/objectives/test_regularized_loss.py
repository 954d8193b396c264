"""The losses among the habits of TorchRL, numpy and PyTorch: what a user hands in without a thought."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchrl.data import Categorical
from torchrl.modules import QValueActor


def value(loss: Any, data: Any, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return loss(data)["loss"]


def test_reduction_none_is_the_mean(case: Any, batch: Any) -> None:
    torch.testing.assert_close(value(case.loss(reduction=None), batch(9)), value(case.loss(), batch(9)))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_transition_without_batch_dimensions(case: Any, batch: Any, reduction: str) -> None:
    data = batch(1)
    expected = case.loss(reduction=reduction)
    row, single = data[0], case.loss(reduction=reduction)
    assert row.batch_dims == 0
    torch.manual_seed(3)
    out = single(row)
    torch.manual_seed(3)
    for name, scalar in expected(data).items():
        torch.testing.assert_close(out[name], scalar.reshape(()))
    assert row["td_error"].shape == (1,)


def test_diagnostics_have_the_precision_of_the_loss(case: Any, batch: Any) -> None:
    out = case.loss().double()(batch(9, dtype=torch.float64))
    assert {scalar.dtype for scalar in out.values()} == {torch.float64}


@pytest.mark.parametrize("make", [np.float32, np.float64, np.array, torch.tensor, lambda x: torch.tensor([x])])
def test_coefficients_may_be_numpy_scalars_and_tensors(cases: Any, make: Any) -> None:
    loss = cases["m_dqn"].loss(tau=make(0.25), alpha=make(0.5), clip_min=make(-0.5))
    assert (float(loss.tau), float(loss.alpha), float(loss.clip_min)) == (0.25, 0.5, -0.5)
    loss.tau = make(0.75)
    assert float(loss.tau) == 0.75 and loss.tau.dtype == torch.float64 and loss.tau.ndim == 0
    loss.make_value_estimator(gamma=make(0.5), tau=make(0.125))
    assert float(loss.tau) == 0.125 and float(loss.value_estimator.gamma) == 0.5


@pytest.mark.parametrize("bad", [True, np.bool_(True), torch.tensor(True), "1", torch.tensor([0.5, 0.5]), 1j])
def test_what_is_no_number_is_refused(cases: Any, bad: Any) -> None:
    for name in ("tau", "alpha", "clip_min"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            cases["m_dqn"].loss(**{name: bad})
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(cases["m_dqn"].loss(), name, bad)
    with pytest.raises(ValueError, match="beta must be"):
        cases["mirl"].loss().beta = bad
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]"):
        cases["m_dqn"].loss().make_value_estimator(gamma=bad)


@pytest.mark.parametrize("make", [np.float64, torch.tensor])
def test_ranges_hold_for_tensors_too(cases: Any, make: Any) -> None:
    loss = cases["m_dqn"].loss()
    for name, bad in (("tau", -1.0), ("tau", float("nan")), ("alpha", 2.0), ("clip_min", 0.5)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(loss, name, make(bad))
    with pytest.raises(ValueError, match="beta must be"):
        cases["mirl"].loss().beta = make(-2.0)
    with pytest.raises(ValueError, match="gamma must be"):
        loss.make_value_estimator(gamma=make(1.5))


class NoFloat64(TorchFunctionMode):
    """The meta device, as if it had no float64 (as Apple's)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_meta and out.dtype == torch.float64:
            raise TypeError("Cannot convert a meta Tensor to float64 dtype.")
        return out


def test_a_loss_built_where_there_is_no_float64(case: Any) -> None:
    with NoFloat64():
        loss = case.cls(case.actor().to("meta"), **case.kwargs).make_value_estimator(gamma=0.9)
    assert {b.dtype for b in loss.buffers()} == {torch.float32}
    assert {b.device.type for b in loss.buffers()} == {"meta"}


def test_a_loss_moved_to_where_there_is_no_float64(case: Any, batch: Any) -> None:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a Tensor to float64 dtype.")
        return tensor.clone()

    loss = case.loss()
    expected = value(loss, batch(9))
    loss._apply(move)
    # Coefficients and priors go back to float64 if they can: the device they are moved to here is a CPU after all.
    exact = ("regularizer.", "shaping.")
    assert {b.dtype for name, b in loss.named_buffers() if not name.startswith(exact)} == {torch.float32}
    torch.testing.assert_close(value(loss, batch(9)), expected)


def batch_norm_actor() -> QValueActor:
    torch.manual_seed(0)
    return QValueActor(nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)), spec=Categorical(3))


@pytest.mark.parametrize("name", ["soft_dqn", "m_dqn", "al", "mirl"])
def test_diagnostics_leave_the_statistics_of_batch_normalization(cases: Any, batch: Any, name: str) -> None:
    states = []
    for diagnostics in (True, False):
        loss = cases[name].loss(batch_norm_actor(), perturb=False, diagnostics=diagnostics)
        before = loss.state_dict()["target_value_network_params.module.0.module.1.running_mean"].clone()
        value(loss, batch(9))
        states.append(loss.state_dict())
        assert not states[-1]["target_value_network_params.module.0.module.1.running_mean"].equal(before)
    assert all(states[1][key].equal(tensor) for key, tensor in states[0].items())


def test_old_style_weight_norm(case: Any, batch: Any) -> None:
    plain = case.actor()
    actor = case.actor()
    for module in list(actor.modules()):
        if isinstance(module, nn.Linear):
            with pytest.warns(FutureWarning, match="weight_norm"):
                nn.utils.weight_norm(module)
    loss, expected = case.loss(actor, perturb=False), case.loss(plain, perturb=False)
    torch.testing.assert_close(value(loss, batch(9)), value(expected, batch(9)))
    value(loss, batch(9)).backward()
    assert all(p.grad is not None for p in loss.parameters())
