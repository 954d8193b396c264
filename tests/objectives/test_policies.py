"""Losses over a policy and V(s): their networks, coefficients that are switched on or learnt, and unusual data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from policy_cases import CASES, log_prob, log_tables, state_value
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import OneHot
from torchrl.modules import MaskedCategorical, OneHotCategorical, ProbabilisticActor, ValueOperator

from torchrl_reg.objectives import ImplicitQLoss, PolyakTargetUpdate

BOTH = pytest.mark.parametrize("name", ["m_iq", "trust_pcl"])


def value(loss: Any, data: Any) -> torch.Tensor:
    return loss(data)["loss"]


@pytest.mark.parametrize("name", ["m_iq_categorical", "trust_pcl"])
def test_diagnostics_are_those_of_the_batch(name: str) -> None:
    loss, data = CASES[name].loss().double(), CASES[name].batch(40, dtype=torch.float64)
    online, lagged = (log_tables(loss, data, lagged=which) for which in (False, True))
    log_pi, tau_log_mu = log_prob(online, data), 0.5 * log_prob(lagged, data)
    rows = {
        "entropy": -sum((each.exp() * each).sum(-1) for each in online),
        "kl": sum((p.exp() * (p - q)).sum(-1) for p, q in zip(online, lagged, strict=True)),
        "log_pi": log_pi,
        "value": state_value(loss, data["observation"]),
        "tau": torch.tensor(0.5),
        "bonus": 0.5 * tau_log_mu.clamp(min=-0.3),
        "bonus_clipped": (tau_log_mu < -0.3).double(),
        "lam": torch.tensor(0.3),
    }
    out = loss(data)
    found = {key: out[key].double() for key in rows if key in out}
    assert len(found) == (7 if name == "m_iq_categorical" else 6)
    torch.testing.assert_close(found, {key: rows[key].double().mean() for key in found}, rtol=1e-5, atol=1e-6)


def test_nothing_is_clipped_where_the_bonus_weighs_nothing() -> None:
    loss, data = CASES["m_iq"].loss(), CASES["m_iq"].batch(9)
    loss.alpha_coefficient.value.zero_()  # as on a GPU, where the loss does not know
    assert loss(data)["bonus_clipped"] == 0


@BOTH
def test_value_key(name: str) -> None:
    case = CASES[name]
    actor, network = case.networks()
    network.out_keys = ["v"]
    torch.testing.assert_close(value(case.loss((actor, network)), case.batch(6)), value(case.loss(), case.batch(6)))


@pytest.mark.parametrize("name", ["m_iq_categorical", "m_iq", "trust_pcl", "trust_pcl_unified"])
def test_lazy_networks(name: str) -> None:
    case = CASES[name]
    loss = case.cls(*case.networks(lazy=True), **case.kwargs).make_value_estimator(gamma=0.9)
    with pytest.warns(UserWarning, match="No target network updater"):
        assert value(loss, case.batch(5)).isfinite()
    PolyakTargetUpdate(loss, rate=0.5)
    source, target = loss.actor_network_params, loss.target_actor_network_params
    assert all((target[k] == source[k]).all() for k in source.keys(True, True))


# -- coefficients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "coefficient"), [("m_iq", "alpha"), ("trust_pcl", "lam")])
def test_a_coefficient_that_is_switched_on_later(name: str, coefficient: str) -> None:
    """At 0 the lagged policy is not evaluated; a scheduler or a checkpoint must bring it back."""
    case = CASES[name]
    on, weight = case.loss(), case.kwargs[coefficient]
    scheduled, estimated, loaded = (case.loss(**{coefficient: 0.0}) for _ in range(3))
    off = copy.deepcopy(loaded.state_dict())
    assert "kl" not in loaded(case.batch(9))
    setattr(scheduled, coefficient, torch.tensor(weight))
    estimated.make_value_estimator(gamma=0.9, **{coefficient: weight})
    loaded.load_state_dict(on.state_dict())
    for loss in (scheduled, estimated, loaded, copy.deepcopy(loaded)):
        out = loss(case.batch(9))
        torch.testing.assert_close(out["loss"], value(on, case.batch(9)))
        assert out["kl"] > 0
    loaded.load_state_dict(off)
    assert "kl" not in loaded(case.batch(9))


#: By loss: what is learnt, at which target, the statistic held there, and the sign of its loss.
LEARNT = {"m_iq": ("tau", "target_entropy", "entropy", 1), "trust_pcl": ("lam", "max_kl", "kl", -1)}


@BOTH
@pytest.mark.parametrize("above", [True, False])
def test_a_learnt_coefficient_follows_its_statistic(name: str, above: bool) -> None:
    """``+- ln c (statistic - target)``: entropy above its target lowers tau, a KL above its budget raises lam."""
    case = CASES[name]
    coefficient, target_name, statistic, sign = LEARNT[name]
    found = float(case.loss()(case.batch(9))[statistic])
    target = found * (0.97 if above else 1.03)
    loss = case.loss(**{target_name: target})
    term, log_value = f"loss_{coefficient}", getattr(loss, f"{coefficient}_coefficient").log_value
    out = loss(case.batch(9))
    assert loss.out_keys[:2] == ["loss", term]
    expected = sign * math.log(case.kwargs[coefficient]) * (found - target)
    torch.testing.assert_close(out[term].item(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(out["loss"], value(case.loss(), case.batch(9)))
    out["loss"].backward()
    assert log_value.grad is None
    loss.zero_grad()
    out[term].backward()
    assert (log_value.grad * sign > 0) == above and found > 0.01
    assert all(p.grad is None for p in loss.parameters() if p is not log_value)


@BOTH
def test_the_learnt_value_is_the_one_in_force(name: str) -> None:
    case = CASES[name]
    coefficient, target_name, _, _ = LEARNT[name]
    loss, other = (case.loss(**{target_name: 0.5}) for _ in range(2))

    def check(each: Any, expected: float) -> None:
        out = each(case.batch(9))
        torch.testing.assert_close(out["loss"], value(case.loss(**{coefficient: expected}), case.batch(9)))
        assert float(getattr(each, coefficient)) == pytest.approx(expected)
        assert float(out[coefficient]) == pytest.approx(expected) and not out[coefficient].requires_grad

    getattr(loss, f"{coefficient}_coefficient").log_value.data.fill_(math.log(0.2))
    check(loss, 0.2)
    other.load_state_dict(loss.state_dict())
    check(other, 0.2)
    setattr(loss, coefficient, 0.7)
    check(loss, 0.7)
    loss.make_value_estimator(gamma=0.9, **{coefficient: 0.6})
    check(loss, 0.6)


@BOTH
def test_masked_rows_count_for_no_learnt_coefficient(name: str) -> None:
    case = CASES[name]
    coefficient, target_name, _, _ = LEARNT[name]
    data, keep = case.batch(8), torch.tensor([True, True, False, True, False, True, True, True])
    expected = case.loss(**{target_name: 0.5})(data[keep])[f"loss_{coefficient}"]
    data["collector", "mask"] = keep.reshape(-1, *[1] * data.ndim).expand(*data.shape, 1).clone()
    data["observation"][~keep] = torch.nan
    torch.testing.assert_close(case.loss(**{target_name: 0.5})(data)[f"loss_{coefficient}"], expected)


@pytest.mark.slow
@BOTH
def test_a_learnt_coefficient_compiles(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    loss = case.loss(**{LEARNT[name][1]: 0.5})
    got = torch.compile(loss, fullgraph=True, backend="aot_eager")(case.batch(9))
    torch.testing.assert_close(dict(got.items()), dict(loss(case.batch(9)).items()))
    sum(got[key] for key in loss.out_keys if key.startswith("loss")).backward()


# -- unusual data -----------------------------------------------------------------------------------------------------


@BOTH
def test_terminated_alone_says_where_episodes_end(name: str) -> None:
    case, data = CASES[name], CASES[name].batch(9)
    data["next", "terminated"] = data["next", "done"].clone()
    torch.testing.assert_close(
        value(case.loss(), data.exclude(("next", "done"))), value(case.loss(), data), rtol=0, atol=0
    )


def test_a_value_network_with_batch_statistics_sees_no_nan() -> None:
    case = CASES["iq"]
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    loss, data = case.loss((case.networks()[0], ValueOperator(net)), perturb=False), case.batch(9)
    data["next", "observation"][data["next", "terminated"].squeeze(-1)] = torch.nan
    assert data["next", "terminated"].any() and value(loss, data).isfinite()
    statistics = [buffer for name, buffer in loss.named_buffers() if "running" in name]
    assert statistics and all(buffer.isfinite().all() for buffer in statistics)


def over_logits(distribution: Any, keys: Any, **data: torch.Tensor) -> tuple[ImplicitQLoss, TensorDict]:
    """A loss over a linear policy of that distribution, and 8 rows."""
    torch.manual_seed(0)
    logits = TensorDictModule(nn.Linear(4, 3), in_keys=["observation"], out_keys=["logits"])
    actor = ProbabilisticActor(logits, in_keys=keys, distribution_class=distribution)
    loss = ImplicitQLoss(actor, ValueOperator(nn.Linear(4, 1)), tau=0.5).make_value_estimator(gamma=0.9)
    PolyakTargetUpdate(loss, rate=0.5)
    return loss, CASES["m_iq_categorical"].batch(8).update(data)


def test_masked_rows_and_a_mask_of_actions() -> None:
    """Rows of padding allow no action at all."""
    count = torch.arange(8) < 6
    keys = {"logits": "logits", "mask": "allowed"}
    loss, data = over_logits(MaskedCategorical, keys, allowed=count.unsqueeze(-1).repeat(1, 3))
    data["collector", "mask"] = count.unsqueeze(-1)
    value(loss, data).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())


def test_boolean_one_hot_actions() -> None:
    action = OneHot(3).rand([8])
    loss, data = over_logits(OneHotCategorical, ["logits"], action=action)
    assert action.dtype == torch.bool
    torch.testing.assert_close(value(loss, data), value(loss, data.clone().set("action", action.long())))
