"""What the losses refuse, and that they say why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

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
    ("m_dqn", {"reduction": "median"}, "reduction must be"),
    (
        "m_dqn",
        {"use_prioritized_weights": "maybe"},
        "use_prioritized_weights must be True, False or 'auto', got 'maybe'",
    ),
    ("m_dqn", {"delay_value": "no"}, "delay_value must be True or False, got 'no'"),
    ("soft_dqn", {"double_dqn": 0}, "double_dqn must be True or False, got 0"),
    ("m_dqn", {"diagnostics": "yes"}, "diagnostics must be True or False, got 'yes'"),
    ("iqn", {"num_quantiles": 0}, "must be integers >= 1"),
    ("iqn", {"num_policy_quantiles": 8.0}, r"must be integers >= 1, got \(.*, 8.0\)"),
    ("iqn", {"kappa": -1.0}, "kappa must be >= 0"),
    ("qr", {"kappa": None}, "kappa must be >= 0 .*, got None"),
    ("m_iqn", {"double_dqn": True}, "double_dqn must be False"),
    ("m_dqn", {"double_dqn": True}, "double_dqn must be False with a shaping"),
    ("mirl", {"beta": 0.0}, "beta must be a finite number > 0 .*, got 0.0"),
    ("mirl", {"beta": -2.0}, "beta must be"),
    ("mi_iqn", {"beta": float("inf")}, "beta must be"),
    ("mirl", {"prior": (0.5, 0.5)}, r"a probability for each of 3 actions, got \[0.5, 0.5\]"),
    ("mirl", {"prior": (0.7, 0.6, -0.3)}, "must not have negative probabilities"),
    ("mirl", {"prior": (0.5, 0.3, 0.1)}, "must sum to one, got .*, which sum to 0.9"),
    ("mirl", {"prior": (0.5, 0.5, float("nan"))}, "negative|sum to one"),
    ("mirl", {"prior": ActionPrior(4), "beta": None}, "over the network's 3 actions, got 4"),
    ("mirl", {"prior": ActionPrior(3)}, "beta must be set in the ActionPrior given as prior, got beta=2.0"),
]


@pytest.mark.parametrize(("name", "kwargs", "message"), BAD)
def test_bad_arguments(cases: Any, name: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cases[name].loss(**kwargs)


def test_bad_networks(cases: Any) -> None:
    with pytest.raises(ValueError, match="must be a QuantileQActor"):
        cases["iqn"].loss(cases["m_dqn"].actor())
    for wrong in (None, "network"):
        with pytest.raises(ValueError, match="value_network must be a QValueActor, .*got (NoneType|str)"):
            cases["m_dqn"].cls(wrong)
    with pytest.raises(ValueError, match="actor must be a Q-value actor, such as a QValueActor, got NoneType"):
        BoltzmannQActor(None, tau=0.5)
    with pytest.raises(ValueError, match="'categorical' or 'one-hot'"):
        cases["m_dqn"].loss(nn.Linear(4, 3), action_space="binary")


@pytest.mark.parametrize(
    ("name", "argument"), [("soft_dqn", "alpha"), ("mirl", "tau"), ("al", "tau"), ("iqn", "tau"), ("m_dqn", "taau")]
)
def test_unknown_arguments_are_refused(cases: Any, name: str, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"{cases[name].cls.__name__}.* unexpected keyword argument '{argument}'"):
        cases[name].loss(**{argument: 0.5})


@pytest.mark.parametrize(
    ("name", "slot", "expected"),
    [
        ("regularizer", 0.1, "Regularizer or None, got 0.1"),
        ("regularizer", Entropy, "Regularizer or None, got <class"),
        ("shaping", Entropy(0.1), "Shaping or None, got Entropy"),
        ("head", ImplicitQuantiles, "Head or None, got <class"),
    ],
)
def test_slots_of_another_kind_are_refused(cases: Any, name: str, slot: Any, expected: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a {expected}"):
        QLearningLoss(cases["m_dqn"].actor(), **{name: slot})


def test_options_of_a_head_go_to_the_actors_or_to_the_one_given(cases: Any) -> None:
    actor = cases["iqn"].actor()
    assert QLearningLoss(actor, num_quantiles=5, kappa=0.5).head.num_quantiles == 5
    with pytest.raises(TypeError, match="num_quantiles, kappa must be given to the head where head is given, got both"):
        QLearningLoss(actor, head=ImplicitQuantiles(), num_quantiles=5, kappa=0.5)


def test_coefficients_are_checked_wherever_they_are_set(cases: Any) -> None:
    loss = cases["m_dqn"].loss()
    for name, value in (("tau", -1.0), ("alpha", 2.0), ("clip_min", 0.5)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            setattr(loss, name, value)
    with pytest.raises(ValueError, match="beta must be"):
        cases["mirl"].loss().beta = 0.0
    loss.clip_min = None
    assert float(loss.clip_min) == -torch.inf


def test_quantile_losses_take_no_loss_function(cases: Any) -> None:
    with pytest.raises(TypeError, match="loss_function must be None, as the distance"):
        cases["iqn"].loss(loss_function="l2")


def test_unknown_keys_are_refused(case: Any) -> None:
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        case.loss().set_keys(nonsense="a")


# -- data ---------------------------------------------------------------------------------------------------------


def without(data: Any, *key: str) -> Any:
    return data.exclude(key if len(key) > 1 else key[0])


def with_nan_reward(data: Any) -> Any:
    data["next", "reward"][2] = torch.nan
    return data


def with_action(data: Any, action: torch.Tensor) -> Any:
    data["action"] = action
    return data


def with_row(data: Any, key: str, value: float) -> Any:
    """One bad number, in row 2, the entry of shape ``[*B]``."""
    return data.set(
        key, torch.ones(data.batch_size, dtype=torch.tensor(value).dtype).index_fill_(0, torch.tensor(2), value)
    )


BAD_DATA = [
    (
        lambda d: without(d, "action"),
        KeyError,
        "data must have an entry 'action', where the loss looks for the stored action",
    ),
    (
        lambda d: without(d, "next", "reward"),
        KeyError,
        r"data must have .*\('next', 'reward'\), .*the reward of each step",
    ),
    (lambda d: without(d, "observation"), KeyError, "data must have an entry 'observation', .* an input of a network"),
    (
        lambda d: without(without(d, "next", "done"), "next", "terminated"),
        KeyError,
        "whether the next state is terminal",
    ),
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
    (lambda d: with_row(d, "steps_to_next_obs", -3), ValueError, "'steps_to_next_obs' must be finite and >= 1, got -3"),
    (lambda d: with_row(d, "priority_weight", -0.5), ValueError, "'priority_weight' must be finite and >= 0, got -0.5"),
    (lambda d: with_row(d, "priority_weight", torch.nan), ValueError, "'priority_weight' must be .* got nan"),
    (lambda d: None, TypeError, "data must be a TensorDict .*got NoneType"),
    (lambda d: dict(d.items()), TypeError, "data must be a TensorDict .*got dict"),
]


@pytest.mark.parametrize(("spoil", "error", "message"), BAD_DATA)
@pytest.mark.parametrize("name", ["soft_dqn", "m_iqn", "mirl"])
def test_bad_data(cases: Any, batch: Any, name: str, spoil: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        cases[name].loss()(spoil(batch(9)))


def test_an_index_where_one_hot_is_expected(cases: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"must be one-hot \(\[\*B, A\]\) .* got shape \[9\]; give action_space='cat"):
        cases["m_dqn"].loss(cases["m_dqn"].actor(one_hot=True))(batch(9))


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
    data["collector", "mask"] = (torch.arange(4) != 3).unsqueeze(-1)
    assert loss(data)["loss"].isfinite()


@pytest.mark.parametrize(("key", "value"), [("steps_to_next_obs", -3), ("priority_weight", torch.nan)])
def test_masked_steps_and_weights_may_hold_anything(cases: Any, batch: Any, key: str, value: float) -> None:
    data = with_row(batch(9), key, value)
    data["collector", "mask"] = (torch.arange(9) != 2).unsqueeze(-1)
    assert cases["m_dqn"].loss()(data)["loss"].isfinite()


def test_weights_that_are_not_used_are_not_read(cases: Any, batch: Any) -> None:
    data = with_row(batch(9), "priority_weight", -1.0)
    assert cases["m_dqn"].loss(use_prioritized_weights=False)(data)["loss"].isfinite()


def test_rows_outside_the_mask_may_hold_anything(cases: Any, batch: Any) -> None:
    data = batch(9)
    data["collector", "mask"] = (torch.arange(9) != 2).unsqueeze(-1)
    assert cases["m_dqn"].loss()(with_nan_reward(data))["loss"].isfinite()


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("bad", [-1, 3, 99])
def test_a_masked_rows_action_may_be_anything(case: Any, batch: Any, bad: int, one_hot: bool) -> None:
    data, action = batch(9), batch(9)["action"]
    if one_hot:
        data["action"] = action = nn.functional.one_hot(action, 3)
    data["collector", "mask"] = (torch.arange(9) != 2).unsqueeze(-1)
    torch.manual_seed(3)
    expected = case.loss(case.actor(one_hot=one_hot))(data.clone())
    data["action"] = action.clone().index_fill(0, torch.tensor([2]), bad)
    torch.manual_seed(3)
    torch.testing.assert_close(case.loss(case.actor(one_hot=one_hot))(data), expected)
    if not one_hot:
        data["action"][4] = 5
        with pytest.raises(ValueError, match="must be one of 0 to 2, got 5"):
            case.loss()(data)


def test_values_are_read_at_the_first_call_or_always_or_never(cases: Any, batch: Any) -> None:
    first, always, never = (cases["m_dqn"].loss() for _ in range(3))
    always.data_checks, never.data_checks = "always", "never"
    for loss in (first, always):
        loss(batch(9))
    assert first(with_nan_reward(batch(9)))["loss"].isnan() and never(with_nan_reward(batch(9)))["loss"].isnan()
    with pytest.raises(ValueError, match="must be finite"):
        always(with_nan_reward(batch(9)))


def test_under_vmap_over_the_data_nothing_is_read(cases: Any, batch: Any) -> None:
    loss = cases["m_dqn"].loss()
    data = torch.stack([batch(9, seed=seed) for seed in (1, 2)])
    values = torch.vmap(lambda d: loss(d)["loss"])(data)
    torch.testing.assert_close(values, torch.stack([cases["m_dqn"].loss()(d)["loss"] for d in data.unbind(0)]))


def test_the_first_batch_that_passes_ends_the_checks(cases: Any, batch: Any) -> None:
    loss, bad = cases["m_dqn"].loss(), batch(4)
    bad["next", "reward"][0] = torch.inf
    for _ in range(2):
        with pytest.raises(ValueError, match="must be finite"):
            loss(bad)
    loss(batch(4))
    assert loss.data_checks == "never"


@pytest.mark.parametrize("bad", [{"alpha": 7.0}, {"gamma": 2.0}])
def test_what_an_estimator_is_refused_for_changes_no_coefficient(cases: Any, bad: dict[str, float]) -> None:
    loss = cases["m_dqn"].loss(tau=0.1)
    with pytest.raises(ValueError):
        loss.make_value_estimator(tau=0.5, **bad)
    assert float(loss.tau) == 0.1
