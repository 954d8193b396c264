"""Errors of a loss, each in one sentence: arguments, and data that it cannot learn from.

Arguments in TorchRL's and NumPy's types are accepted; masked rows are not checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.overrides import TorchFunctionMode
from torchrl.data import Categorical, OneHot
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.modules import ActionPrior, BoltzmannQActor
from torchrl_reg.objectives import MunchausenDQNLoss, QLearningLoss
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


# -- data -----------------------------------------------------------------------------------------------------------


def without(data: Any, *keys: Any) -> Any:
    return data.exclude(*keys)


def with_nan_reward(data: Any) -> Any:
    data["next", "reward"][2] = torch.nan
    return data


def with_action(data: Any, action: torch.Tensor) -> Any:
    return data.set("action", action)


def with_row(data: Any, key: str, value: float) -> Any:
    """One bad number, in row 2, the entry of shape ``[*B]``."""
    return data.set(
        key, torch.ones(data.batch_size, dtype=torch.tensor(value).dtype).index_fill_(0, torch.tensor(2), value)
    )


def masked(data: Any, row: int = 2) -> Any:
    """``data`` of which that row does not count."""
    return data.set(("collector", "mask"), (torch.arange(len(data)) != row).unsqueeze(-1))


BAD_DATA = [
    (
        lambda d: without(d, "action"),
        KeyError,
        "data must have an entry 'action', where the loss looks for the stored action",
    ),
    (
        lambda d: without(d, ("next", "reward")),
        KeyError,
        r"must have .*\('next', 'reward'\), .*reward of each step",
    ),
    (lambda d: without(d, "observation"), KeyError, "data must have an entry 'observation', .* an input of a network"),
    (lambda d: without(d, ("next", "done"), ("next", "terminated")), KeyError, "whether the next state is terminal"),
    (with_nan_reward, ValueError, r"reward \('next', 'reward'\) must be finite, got NaN or infinity in 1 rows"),
    (lambda d: d[:0], ValueError, r"at least one row, got batch size \[0\]"),
    (
        lambda d: with_action(d, nn.functional.one_hot(d["action"], 3)),
        ValueError,
        r"must hold integers \[\*B\] .* 'categorical', got torch.int64 of shape \[9, 3\]",
    ),
    (lambda d: with_action(d, d["action"].float()), ValueError, "must hold integers .* got torch.float32"),
    (lambda d: with_action(d, d["action"] + 1), ValueError, "must be one of 0 to 2, got 3"),
    (lambda d: with_action(d, d["action"] - 1), ValueError, "must be one of 0 to 2, got -1"),
    (lambda d: with_row(d, "steps_to_next_obs", 0), ValueError, "'steps_to_next_obs' must be finite and >= 1, got 0"),
    (lambda d: with_row(d, "priority_weight", -0.5), ValueError, "'priority_weight' must be finite and >= 0, got -0.5"),
    (lambda d: with_row(d, "priority_weight", torch.nan), ValueError, "'priority_weight' must be .* got nan"),
    (lambda d: None, TypeError, "data must be a TensorDict .*got NoneType"),
    (lambda d: dict(d.items()), TypeError, "data must be a TensorDict .*got dict"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_DATA)
def test_bad_data(cases: Any, batch: Any, spoil: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        cases["mirl"].loss()(spoil(batch(9)))


def test_an_index_where_one_hot_is_expected(cases: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"must be one-hot \(\[\*B, A\]\) .* got shape \[9\]; give action_space='cat"):
        cases["m_dqn"].loss(cases["m_dqn"].actor(one_hot=True))(batch(9))


@pytest.mark.parametrize("shape", [(7, 3), (1, 2), (5, 4, 3)], ids=str)
def test_actions_of_several_agents_are_taken_as_torchrl_takes_them(shape: tuple[int, ...]) -> None:
    """Batch ``[B]`` (or ``[*B]``), integers ``[B, N]``; one-hot ones are refused all the same."""
    keys: dict[str, Any] = {n: ("agents", n) for n in ("action", "action_value", "reward", "done", "terminated")}
    how = {"in_keys": [("agents", "observation")], "action_value_key": keys["action_value"]}
    actor = QValueActor(nn.Linear(4, 3), spec=Categorical(3), **how)
    draw = torch.Generator().manual_seed(0)
    states, ended = torch.randn(2, *shape, 4, generator=draw), torch.rand(*shape, 1, generator=draw) < 0.3
    following = {"observation": states[1], "reward": torch.randn(*shape, 1, generator=draw)}
    following |= {"done": ended, "terminated": ended}
    acted = torch.randint(3, shape, generator=draw)
    agents = {"observation": states[0], "action": acted}
    data = TensorDict({"agents": agents, "next": {"agents": following}}, shape[:-1])
    losses = [cls(actor, action_space="categorical", delay_value=False) for cls in (DQNLoss, QLearningLoss)]
    found = []
    for loss in losses:
        loss.set_keys(**keys)
        loss.make_value_estimator(gamma=0.9)
        value = loss(data.clone())["loss"]
        found.append((value, torch.autograd.grad(value, list(loss.parameters()))))
    torch.testing.assert_close(found[1], found[0])
    losses[1].data_checks = "always"
    with pytest.raises(ValueError, match="must hold integers"):
        losses[1](data.set(("agents", "action"), nn.functional.one_hot(acted, 3)))


@pytest.mark.parametrize("spec", [Categorical(1), OneHot(1)], ids=["index", "one_hot"])
def test_one_action_is_enough(batch: Any, spec: Any) -> None:
    """As it is for TorchRL's loss."""
    data, actor = batch(5), QValueActor(nn.Linear(4, 1), spec=spec)
    data["action"] = spec.zero((5,)) if isinstance(spec, Categorical) else torch.ones(5, 1, dtype=torch.long)
    found = []
    for loss in (DQNLoss(actor, delay_value=False), QLearningLoss(actor, delay_value=False)):
        loss.make_value_estimator(gamma=0.9)
        found.append(loss(data.clone())["loss"])
    torch.testing.assert_close(found[1], found[0])
    out = MunchausenDQNLoss(actor, delay_value=False)(data)
    assert out["action_gap"] == out["entropy"] == out["bonus"] == 0


@pytest.mark.parametrize("row", [[0, 0, 0], [0, 1, 1], [2, 0, -1], [0, 2, 0]])
def test_one_hot_actions_have_a_single_one(cases: Any, batch: Any, row: list[int]) -> None:
    data = batch(4)
    data["action"] = nn.functional.one_hot(data["action"], 3)
    loss = cases["m_dqn"].loss(cases["m_dqn"].actor(one_hot=True))
    loss.data_checks = "always"
    assert loss(data)["loss"].isfinite()
    data["action"][3] = torch.tensor(row)
    with pytest.raises(ValueError, match=rf"must have a single 1 in each row .one-hot., got \[{row[0]}, "):
        loss(data)
    assert loss(masked(data, 3))["loss"].isfinite()


def test_numbers_that_do_not_count_are_not_read(cases: Any, batch: Any) -> None:
    data = masked(batch(9))
    for key, value in (("steps_to_next_obs", -3), ("priority_weight", torch.nan)):
        with_row(data, key, value)
    assert cases["m_dqn"].loss()(with_nan_reward(data))["loss"].isfinite()
    unused = with_row(batch(9), "priority_weight", -1.0)
    assert cases["m_dqn"].loss(use_prioritized_weights=False)(unused)["loss"].isfinite()


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("bad", [-1, 3, 99])
@pytest.mark.parametrize("name", ["m_dqn", "m_iqn", "c51"])
def test_a_masked_rows_action_may_be_anything(cases: Any, batch: Any, name: str, bad: int, one_hot: bool) -> None:
    case, data = cases[name], masked(batch(9))
    if one_hot:
        data["action"] = nn.functional.one_hot(data["action"], 3)
    torch.manual_seed(3)
    expected = case.loss(case.actor(one_hot=one_hot))(data.clone())
    data["action"][2] = bad
    torch.manual_seed(3)
    torch.testing.assert_close(case.loss(case.actor(one_hot=one_hot))(data), expected)


def test_values_are_read_until_a_batch_has_passed_or_always_or_never(cases: Any, batch: Any) -> None:
    first, always, never = (cases["m_dqn"].loss() for _ in range(3))
    always.data_checks, never.data_checks = "always", "never"
    for loss in (first, always):
        for _ in range(2):
            with pytest.raises(ValueError, match="must be finite"):
                loss(with_nan_reward(batch(9)))
        loss(batch(9))
    assert first.data_checks == "never"
    assert first(with_nan_reward(batch(9)))["loss"].isnan() and never(with_nan_reward(batch(9)))["loss"].isnan()
    with pytest.raises(ValueError, match="must be finite"):
        always(with_nan_reward(batch(9)))


def test_under_vmap_over_the_data_nothing_is_read(cases: Any, batch: Any) -> None:
    loss = cases["m_dqn"].loss()
    data = torch.stack([batch(9, seed=seed) for seed in (1, 2)])
    values = torch.vmap(lambda d: loss(d)["loss"])(data)
    torch.testing.assert_close(values, torch.stack([cases["m_dqn"].loss()(d)["loss"] for d in data.unbind(0)]))


@pytest.mark.parametrize("key", ["terminated", "done"])
def test_flags_must_be_bool(cases: Any, batch: Any, key: str) -> None:
    data = batch(5)
    data["next", key] = data["next", key].to(torch.uint8)
    with pytest.raises(ValueError, match=rf"\('next', '{key}'\) must be bool, got torch.uint8"):
        cases["soft_dqn"].loss()(data)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_actions_may_be_short_integers(cases: Any, batch: Any, dtype: torch.dtype) -> None:
    data = batch(5)
    expected = cases["m_dqn"].loss()(data.copy())["loss"]
    assert torch.equal(cases["m_dqn"].loss()(data.set("action", data["action"].to(dtype)))["loss"], expected)


def test_a_plain_module_takes_a_spec(cases: Any, batch: Any) -> None:
    loss = QLearningLoss(torch.nn.Linear(4, 3), action_space=Categorical(3), delay_value=False)
    assert loss.action_space == "categorical" and loss(batch(5))["loss"].isfinite()
