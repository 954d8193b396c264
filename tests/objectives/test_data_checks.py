"""Data that a loss cannot learn from are refused in one sentence; rows that do not count may hold anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor
from torchrl.objectives import DQNLoss

from torchrl_reg.objectives import QLearningLoss


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
