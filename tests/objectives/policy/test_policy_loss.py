"""Losses over a policy and V(s): networks, priorities, and the gradient of the bootstrap."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from torchrl_reg.objectives import PolyakTargetUpdate

GAMMA = 0.9
OTHER = {"tau": 0.2, "alpha": 0.9, "clip_min": -1.0, "lam": 0.6}


def value(loss: Any, data: Any) -> torch.Tensor:
    torch.manual_seed(3)  # the KL of a flow is estimated from a sample
    return loss(data)["loss"]


def rows(loss: Any, data: Any) -> torch.Tensor:
    loss.reduction = "none"
    return value(loss, data)


def test_value_key(cases: Any) -> None:
    for name in ("m_iq", "trust_pcl"):
        case = cases[name]
        expected = value(case.loss(), case.batch(6))
        actor, network = case.networks()
        network.out_keys = ["v"]
        torch.testing.assert_close(value(case.loss((actor, network)), case.batch(6)), expected)


def test_priorities_and_their_weights(case: Any) -> None:
    data = case.batch(9)
    none = rows(case.loss(), data)
    torch.testing.assert_close(data["td_error"].squeeze(-1), none.detach())
    weights = torch.linspace(0.2, 2.0, data.numel()).reshape(data.shape)
    weighted = case.batch(9)
    weighted["priority_weight"] = weights
    torch.testing.assert_close(value(case.loss(), weighted), (weights * none).sum() / weights.sum())


def test_gradient_into_the_bootstrap_is_what_was_asked_for(case: Any) -> None:
    """Through an input of V(s') that no other term reads."""
    data = case.batch(9)
    following = data["next", "observation"].clone().requires_grad_()
    data["next", "observation"] = following
    (gradient,) = torch.autograd.grad(value(case.loss(), data), following, allow_unused=True)
    if case.online_bootstrap:
        assert (gradient[data["next", "terminated"].squeeze(-1)] == 0).all() and gradient.abs().max() > 1e-4
    else:
        assert gradient is None or not gradient.any()


@pytest.mark.parametrize("name", ["m_iq", "m_iq_categorical", "m_iq_gaussian", "trust_pcl", "trust_pcl_unified"])
def test_lazy_networks(cases: Any, name: str) -> None:
    case = cases[name]
    loss = case.cls(*case.networks(lazy=True), **case.kwargs).make_value_estimator(gamma=0.9)
    with pytest.warns(UserWarning, match="No target network updater"):
        assert value(loss, case.batch(5)).isfinite()
    PolyakTargetUpdate(loss, rate=0.5)
    source, target = loss.actor_network_params, loss._target_params("actor_network")
    assert all((target[k] == source[k]).all() for k in source.keys(True, True))


def test_a_coefficient_that_is_switched_on_later(cases: Any) -> None:
    """At 0 the lagged policy is not evaluated; a scheduler or a checkpoint must bring it back."""
    for name, coefficient in (("m_iq", "alpha"), ("trust_pcl", "lam")):
        case = cases[name]
        on = case.loss()
        expected = value(on, case.batch(9))

        def off(case: Any = case, coefficient: str = coefficient) -> Any:
            loss = case.loss(**{coefficient: 0.0})
            assert "kl" not in loss(case.batch(9))
            return loss

        scheduled, estimated, loaded, assigned, copied = (off() for _ in range(5))
        setattr(scheduled, coefficient, case.kwargs[coefficient])
        estimated.make_value_estimator(gamma=0.9, **{coefficient: case.kwargs[coefficient]})
        loaded.load_state_dict(on.state_dict())
        setattr(assigned, coefficient, torch.tensor(case.kwargs[coefficient], dtype=torch.float64))
        copied = copy.deepcopy(loaded)
        for loss in (scheduled, estimated, loaded, assigned, copied):
            out = loss(case.batch(9))
            torch.testing.assert_close(out["loss"], expected)
            assert out["kl"] > 0
        loaded.load_state_dict(off().state_dict())
        assert "kl" not in loaded(case.batch(9))


def test_train_and_eval_mode_follow_the_networks(cases: Any) -> None:
    for name in ("m_iq", "trust_pcl"):
        actor, network = cases[name].networks()
        actor.network.insert(2, torch.nn.Dropout(0.5))
        loss = cases[name].loss((actor, network))
        data = cases[name].batch(9)
        assert rows(loss, data).ne(loss(data)["loss"]).any()
        actor.eval()
        assert torch.equal(rows(loss, data), loss(data)["loss"])
