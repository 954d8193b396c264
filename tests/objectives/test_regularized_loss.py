"""Arguments of the losses over Q-values: which are refused and how, and what users of TorchRL and numpy hand in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from torchrl_reg.modules import ActionPrior, BoltzmannQActor
from torchrl_reg.objectives import QLearningLoss
from torchrl_reg.objectives.heads import ImplicitQuantiles
from torchrl_reg.regularizers import Entropy

BAD = [
    ("soft_dqn", {"tau": 0.0}, "tau must be a finite number > 0"),
    ("soft_dqn", {"tau": -1.0}, "got -1.0"),
    ("m_dqn", {"tau": float("nan")}, "tau must be"),
    ("m_dqn", {"alpha": 2.0}, r"alpha must be in \[0, 1\], got 2.0"),
    ("m_dqn", {"clip_min": 0.5}, "clip_min must be <= 0"),
    ("al", {"alpha": -0.1}, "alpha must be"),
    ("m_dqn", {"loss_function": "l3"}, "loss_function must be"),
    ("m_dqn", {"weight_reduction": "sum"}, "weight_reduction must be 'normalized' or 'mean', got 'sum'"),
    ("m_dqn", {"reduction": "median"}, "reduction must be"),
    ("m_dqn", {"use_prioritized_weights": "maybe"}, "use_prioritized_weights must be True, False or 'auto', got 'may"),
    ("m_dqn", {"delay_value": "no"}, "delay_value must be True or False, got 'no'"),
    ("soft_dqn", {"double_dqn": 0}, "double_dqn must be True or False, got 0"),
    ("pal", {"persistent": "yes"}, "persistent must be True or False, got 'yes'"),
    ("m_dqn", {"diagnostics": "yes"}, "diagnostics must be True or False, got 'yes'"),
    ("iqn", {"num_quantiles": 0}, "must be integers >= 1"),
    ("iqn", {"num_policy_quantiles": 8.0}, r"must be integers >= 1, got \(.*, 8.0\)"),
    ("iqn", {"kappa": -1.0}, "kappa must be >= 0"),
    ("qr", {"kappa": None}, "kappa must be >= 0 .*, got None"),
    ("m_iqn", {"double_dqn": True}, "double_dqn must be False with a shaping"),
    ("mirl", {"beta": 0.0}, "beta must be a finite number > 0 .*, got 0.0"),
    ("mi_iqn", {"beta": float("inf")}, "beta must be"),
    ("mirl", {"prior": (0.5, 0.5)}, r"a probability for each of 3 actions, got \[0.5, 0.5\]"),
    ("mirl", {"prior": ActionPrior(4), "beta": None}, "over the network's 3 actions, got 4"),
    ("mirl", {"prior": ActionPrior(3)}, "beta must be set in the ActionPrior given as prior, got beta=2.0"),
    ("m_dqn", {"actor": nn.Linear(4, 3), "action_space": "binary"}, "'categorical' or 'one-hot'"),
    *[("m_dqn", {"actor": x}, f"value_network must be a QValueActor, .*got {type(x).__name__}") for x in ("net", 1)],
]


@pytest.mark.parametrize(("name", "kwargs", "message"), BAD)
def test_bad_arguments(cases: Any, name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases[name].loss(**kwargs)


def test_bad_networks(cases: Any) -> None:
    with pytest.raises(ValueError, match="must be a QuantileQActor"):
        cases["iqn"].loss(cases["m_dqn"].actor())
    with pytest.raises(ValueError, match="actor must be a Q-value actor, such as a QValueActor, got NoneType"):
        BoltzmannQActor(None, tau=0.5)


@pytest.mark.parametrize(
    ("name", "argument"), [("soft_dqn", "alpha"), ("mirl", "tau"), ("al", "tau"), ("iqn", "tau"), ("m_dqn", "taau")]
)
def test_unknown_arguments_are_refused(cases: Any, name: str, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"{cases[name].cls.__name__}.* unexpected keyword argument '{argument}'"):
        cases[name].loss(**{argument: 0.5})
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        cases[name].loss().set_keys(nonsense="a")


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ({"regularizer": 0.1}, "regularizer must be a Regularizer or None, got 0.1"),
        ({"regularizer": Entropy}, "regularizer must be a Regularizer or None, got <class"),
        ({"shaping": Entropy(0.1)}, "shaping must be a Shaping or None, got Entropy"),
        ({"head": ImplicitQuantiles}, "head must be a Head or None, got <class"),
        ({"head": ImplicitQuantiles(), "num_quantiles": 5, "kappa": 0.5}, "num_quantiles, kappa must be given to the"),
        ({"loss_function": "l2"}, "loss_function must be None, as the distance"),
    ],
)
def test_slots_of_another_kind_are_refused(cases: Any, slots: dict[str, Any], message: str) -> None:
    assert QLearningLoss(cases["iqn"].actor(), num_quantiles=5, kappa=0.5).head.num_quantiles == 5
    with pytest.raises(TypeError, match=message):
        QLearningLoss(cases["iqn"].actor(), **slots)


@pytest.mark.parametrize("make", [np.float32, np.float64, np.array, torch.tensor, lambda x: torch.tensor([x])])
def test_coefficients_may_be_numpy_scalars_and_tensors(cases: Any, make: Any) -> None:
    loss = cases["m_dqn"].loss(tau=make(0.25), alpha=make(0.5), clip_min=make(-0.5))
    assert (float(loss.tau), float(loss.alpha), float(loss.clip_min)) == (0.25, 0.5, -0.5)
    loss.tau = make(0.75)
    assert float(loss.tau) == 0.75 and loss.tau.dtype == torch.float64 and loss.tau.ndim == 0
    loss.make_value_estimator(gamma=make(0.5), tau=make(0.125))
    assert float(loss.tau) == 0.125 and float(loss.value_estimator.gamma) == 0.5
    loss.clip_min = None
    assert float(loss.clip_min) == -torch.inf


NO_NUMBER = [True, np.bool_(True), torch.tensor(True), "1", torch.tensor([0.5, 0.5]), 1j, float("nan")]
OUT_OF_RANGE = {"tau": -1.0, "alpha": 2.0, "clip_min": 0.5, "beta": -2.0, "gamma": 1.5}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_coefficients_are_checked_wherever_they_are_set(cases: Any, name: str) -> None:
    bad = OUT_OF_RANGE[name]
    case = cases["mirl" if name == "beta" else "m_dqn"]
    for value in (*NO_NUMBER, bad, np.float64(bad), torch.tensor(bad)):
        loss = case.loss()
        before = {key: float(coefficient.value) for key, coefficient in loss._coefficients().items()}
        with pytest.raises(ValueError, match=f"{name} must be"):
            loss.make_value_estimator(**{"gamma": 0.5, **dict.fromkeys(before, 0.7), "clip_min": -0.1, name: value})
        if name != "gamma":
            with pytest.raises(ValueError, match=f"{name} must be"):
                setattr(loss, name, value)
            with pytest.raises(ValueError, match=f"{name} must be"):
                case.loss(**{name: value})
        assert before == {key: float(coefficient.value) for key, coefficient in loss._coefficients().items()}


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
    assert {(b.dtype, b.device.type) for b in loss.buffers()} == {(torch.float32, "meta")}


def test_a_loss_moved_to_where_there_is_no_float64(case: Any, batch: Any) -> None:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a Tensor to float64 dtype.")
        return tensor.clone()

    loss = case.loss()
    torch.manual_seed(3)
    expected = loss(batch(9))["loss"]
    loss._apply(move)
    # Coefficients and priors go back to float64 if they can: the device they are moved to here is a CPU after all.
    exact = ("regularizer.", "shaping.")
    assert {b.dtype for name, b in loss.named_buffers() if not name.startswith(exact)} == {torch.float32}
    torch.manual_seed(3)
    torch.testing.assert_close(loss(batch(9))["loss"], expected)
