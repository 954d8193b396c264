"""The implicit-Q loss against its equation, NAF as a special case, and densities above one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from policy_cases import CASES, assert_same, log_prob, log_tables, make_value, state_value
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torchrl.modules import OneHotCategorical, ProbabilisticActor, TruncatedNormal, ValueOperator

from torchrl_reg.modules import FlowActor, gaussian_actor
from torchrl_reg.objectives import ImplicitQLoss, PolyakTargetUpdate

GAMMA, TAU, ALPHA = 0.9, 0.5, 0.5


def written_out(loss: Any, data: Any) -> tuple[Tensor, Tensor]:
    """Prediction and target ``[B]``."""
    prediction = TAU * log_prob(log_tables(loss, data), data) + state_value(loss, data["observation"])
    following = state_value(loss, data["next", "observation"], lagged=not loss.residual)
    following = following if loss.residual else following.detach()
    target = data["next", "reward"].squeeze(-1) + GAMMA * (~data["next", "terminated"].squeeze(-1) * following)
    if loss.alpha > 0:
        lagged = TAU * log_prob(log_tables(loss, data, lagged=True), data).detach()
        target = target + ALPHA * lagged.clamp(min=float(loss.clip_min))
    return prediction, target


@pytest.mark.parametrize("size", [1, 17])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("iq", {}),
        ("m_iq", {}),
        ("m_iq", {"clip_min": None}),
        ("m_iq_ragged", {}),
        ("m_iq_categorical", {}),
        ("m_iq_residual", {}),
    ],
)
def test_loss_is_the_equation(name: str, kwargs: dict[str, Any], size: int) -> None:
    loss, data = CASES[name].loss(**kwargs).double(), CASES[name].batch(size, dtype=torch.float64)
    prediction, target = written_out(loss, data)
    out, error = loss(data), (prediction - target).detach()
    assert_same(out["loss"], (prediction - target).square().mean(), loss, loss)
    torch.testing.assert_close(data["td_error"].squeeze(-1), error.square(), rtol=0, atol=1e-12)
    torch.testing.assert_close(out["td_error"].double(), error.abs().mean(), rtol=1e-5, atol=0)
    for kind, function in (("l1", nn.functional.l1_loss), ("smooth_l1", nn.functional.smooth_l1_loss)):
        loss.loss_function = kind
        torch.testing.assert_close(loss(data)["loss"], function(prediction, target), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 17])
@pytest.mark.parametrize("name", ["iq", "m_iq_ragged", "m_iq_residual"])
def test_the_mean_in_place_of_the_logsumexp(name: str, size: int) -> None:
    """``Q = V + A - mean A``, and its soft value at s', of a network whose V is that of IQ shifted per state."""
    plain, data = CASES[name].loss().double(), CASES[name].batch(size, dtype=torch.float64)
    loss = CASES[name].loss(baseline="mean").double()

    def mean(rows: Any, lagged: bool) -> Tensor:
        return sum(table.mean(-1) for table in log_tables(loss, rows, lagged=lagged))  # type: ignore[return-value]

    prediction, target = written_out(loss, data)
    prediction = prediction - TAU * mean(data, False)
    shift = GAMMA * TAU * (~data["next", "terminated"].squeeze(-1) * mean(data["next"], not loss.residual))
    target = target - (shift if loss.residual else shift.detach())
    assert_same(loss(data)["loss"], (prediction - target).square().mean(), loss, loss)
    assert not torch.isclose(loss(data)["loss"], plain(data)["loss"])


def test_the_mean_needs_bins() -> None:
    with pytest.raises(ValueError, match="baseline must be 'logsumexp' or 'mean', got 'max'"):
        CASES["iq"].loss(baseline="max")
    with pytest.raises(ValueError, match="baseline='mean' needs bins, such as those of a MulticategoricalActor, got a"):
        CASES["m_iq_gaussian"].loss(baseline="mean")(CASES["m_iq_gaussian"].batch(3))


def test_actions_and_their_bins_are_the_same() -> None:
    """By default the action is read: a random warm-up writes no bins. It lies in its bin exactly."""
    data, loss = CASES["m_iq"].batch(9), CASES["m_iq"].loss()
    by_action = loss(data.exclude("action_index"))["loss"]
    loss.set_keys(action="action_index")
    assert torch.equal(loss(data.exclude("action"))["loss"], by_action)
    with pytest.raises(KeyError, match=r"an entry 'action_index'.*set_keys\(action=...\)"):
        loss(data.exclude("action_index"))


# -- limits ---------------------------------------------------------------------------------------------------------


def test_naf_is_a_gaussian_special_case() -> None:
    """``pi = N(mu, tau P^-1)``: Q is NAF's, V its maximum plus ``tau / 2 ln det(2 pi tau P^-1)``."""
    torch.manual_seed(0)
    lower = torch.tensor([[1.3, 0.0], [-0.4, 0.7]], dtype=torch.float64)
    precision = lower @ lower.T
    constant = 0.5 * TAU * torch.logdet(2 * math.pi * TAU * precision.inverse())
    assert constant.abs() > 0.1
    mean, shifted = (nn.Linear(4, outputs, dtype=torch.float64) for outputs in (2, 1))
    policy = ProbabilisticActor(
        TensorDictModule(mean, in_keys=["observation"], out_keys=["loc"]),
        in_keys=["loc"],
        distribution_class=MultivariateNormal,
        distribution_kwargs={"precision_matrix": precision / TAU},
        return_log_prob=True,
    )
    loss = ImplicitQLoss(policy, ValueOperator(shifted), tau=TAU, reduction="none")
    PolyakTargetUpdate(loss.make_value_estimator(gamma=GAMMA), rate=0.5)
    data = CASES["m_iq_gaussian"].batch(20, dtype=torch.float64)
    away = data["action"] - mean(data["observation"])
    best, following = (shifted(rows["observation"]).squeeze(-1) - constant for rows in (data, data["next"]))
    quadratic = best - 0.5 * torch.einsum("bi,ij,bj->b", away, precision, away)
    # NAF bootstraps on the maximum, IQ on the soft value: the rewards of NAF make up for the constant between them.
    alive = ~data["next", "terminated"].squeeze(-1)
    target = data["next", "reward"].squeeze(-1) + GAMMA * (alive * (constant + following))
    torch.testing.assert_close(loss(data)["loss"], (quadratic - target).square(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_the_bonus_of_a_density_may_be_positive(kind: str) -> None:
    torch.manual_seed(0)
    box = {"low": [-0.05, -0.1], "high": [0.05, 0.1]}  # so small that densities exceed 1
    actor = gaussian_actor(nn.Linear(4, 4), **box) if kind == "gaussian" else FlowActor(nn.Linear(4, 8), 8, **box)
    loss = ImplicitQLoss(actor, make_value(), tau=TAU, alpha=ALPHA, clip_min=-0.3)
    PolyakTargetUpdate(loss.make_value_estimator(gamma=GAMMA), rate=0.5)
    data = CASES["m_iq_gaussian"].batch(64)
    data["action"] *= 0.0499
    with torch.no_grad():
        tau_log_pi = TAU * actor.get_dist(data).log_prob(data["action"])  # the target policy is still the same
        here, following = (state_value(loss, rows["observation"]) for rows in (data, data["next"]))
    assert (tau_log_pi > 0).any()
    out, bonus = loss(data), ALPHA * tau_log_pi.clamp(min=-0.3)
    torch.testing.assert_close(out["bonus"], bonus.mean())
    alive = ~data["next", "terminated"].squeeze(-1)
    target = data["next", "reward"].squeeze(-1) + bonus + GAMMA * (alive * following)
    torch.testing.assert_close(out["loss"].detach(), (target - here - tau_log_pi).square().mean())


def test_masked_rows_outside_the_policys_box_reach_no_gradient(batch: Any) -> None:
    """Padding is 0, which a policy on [1, 2] cannot play."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2), NormalParamExtractor())
    module = TensorDictModule(net, ["observation"], ["loc", "scale"])
    box = {"low": torch.ones(1), "high": 2 * torch.ones(1)}
    actor = ProbabilisticActor(
        module,
        in_keys=["loc", "scale"],
        distribution_class=TruncatedNormal,
        distribution_kwargs=box,
        return_log_prob=True,
    )
    loss = ImplicitQLoss(actor, make_value(), tau=TAU).make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)
    data = batch(4).set("action", torch.tensor([[1.2], [1.5], [1.9], [0.0]]))
    data["collector", "mask"] = torch.tensor([True, True, True, False])
    loss(data)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (OneHotCategorical, (), r"must be one-hot \(\[\*B, A\]\) for OneHotCategorical"),
        (torch.distributions.Categorical, (1,), r"must hold indices \[\*B\] for Categorical"),
    ],
)
def test_discrete_actions_of_another_kind_are_refused(batch: Any, kind: Any, shape: Any, message: str) -> None:
    module = TensorDictModule(nn.Linear(4, 3), ["observation"], ["logits"])
    actor = ProbabilisticActor(module, in_keys=["logits"], distribution_class=kind, return_log_prob=True)
    loss = ImplicitQLoss(actor, make_value(), tau=TAU).make_value_estimator(gamma=GAMMA)
    PolyakTargetUpdate(loss, rate=0.5)
    with pytest.raises(ValueError, match=message):
        loss(batch(8).set("action", torch.randint(3, (8, *shape))))
