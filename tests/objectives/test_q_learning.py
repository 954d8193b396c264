"""Losses over Q-values: actions, masks of actions, and the networks they take."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.modules import QuantileQActor
from torchrl_reg.objectives import PolyakTargetUpdate
from torchrl_reg.objectives.heads import ExpectedValue, Regression


def value(loss: Any, data: Any, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return loss(data)["loss"]


def test_other_writings_of_an_action(case: Any, batch: Any) -> None:
    data = batch(9)
    expected = value(case.loss(), data.clone())
    data["action"] = data["action"].unsqueeze(-1)
    torch.testing.assert_close(value(case.loss(), data), expected)
    data["action"] = nn.functional.one_hot(data["action"].squeeze(-1), 3).bool()
    torch.testing.assert_close(value(case.loss(case.actor(one_hot=True)), data), expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_transition_without_batch_dimensions(case: Any, batch: Any, reduction: str) -> None:
    data, losses = batch(1), [case.loss(reduction=reduction) for _ in range(2)]
    row = data[0]
    found = []
    for loss, each in zip(losses, (row, data), strict=True):
        torch.manual_seed(3)
        found.append({name: scalar.reshape(()) for name, scalar in loss(each).items()})
    torch.testing.assert_close(*found)
    assert row.batch_dims == 0 and row["td_error"].shape == (1,)


def test_nan_that_counts_is_seen(case: Any, batch: Any) -> None:
    data = batch(4)
    data["next", "terminated"][:], data["next", "observation"][0] = False, torch.nan
    assert not value(case.loss(diagnostics=False), data).isfinite()


def test_action_mask(case: Any, batch: Any) -> None:
    data = batch(12)
    data["action"].clamp_(max=1)
    for at in (data, data["next"]):
        at["allowed"] = torch.tensor([True, True, False]).expand(12, 3).clone()
    masked = case.loss(case.actor(action_mask_key="allowed"))
    out = value(masked, data)
    assert out.isfinite()
    # Making the forbidden action look splendid changes nothing.
    unmasked = case.loss(case.actor())
    for loss in (masked, unmasked):
        for params in (loss.value_network_params, loss.target_value_network_params):
            bias = [p for p in params.values(True, True) if p.shape in ((3,), (15,), (21,))][0]
            bias.data.view(-1, 3)[-1, 2] += 50.0  # of the value, the last quantile, the highest atom
    torch.testing.assert_close(value(masked, data), out)
    assert (value(unmasked, data) - out).abs() > 1e-4


def test_without_target_network(case: Any, batch: Any) -> None:
    loss = case.cls(case.actor(), delay_value=False, **case.kwargs).make_value_estimator(gamma=0.9)
    delayed = case.loss(perturb=False)
    torch.testing.assert_close(value(loss, batch(9)), value(delayed, batch(9)))
    with pytest.raises(RuntimeError, match="target"):
        PolyakTargetUpdate(loss, rate=0.5)


def test_diagnostics_under_masks(case: Any, batch: Any) -> None:
    data = batch(8)
    mask = torch.tensor([True, True, False, True, False, True, True, True])
    data["collector", "mask"] = mask.unsqueeze(-1)
    data["observation"][~mask] = torch.nan
    for at in (data, data["next"]):
        at["allowed"] = torch.tensor([True, False, False]).expand(8, 3).clone()
    data["action"][:] = 0
    torch.manual_seed(0)
    out = case.loss(case.actor(action_mask_key="allowed"))(data)
    assert all(out[name].isfinite() and out[name].abs() < 1e3 for name in out.keys())  # noqa: SIM118


@pytest.mark.parametrize("name", ["m_dqn", "m_iqn", "m_c51"])
def test_nothing_is_clipped_where_the_bonus_weighs_nothing(cases: Any, batch: Any, name: str) -> None:
    loss, data = cases[name].loss(), batch(9)
    assert loss(data)["bonus_clipped"] > 0.1
    loss.alpha = 0.0
    assert loss(data)["bonus_clipped"] == 0


def test_bf16_autocast_keeps_targets_in_float32(cases: Any, batch: Any) -> None:
    for name, case in cases.items():
        data = batch(6)
        with torch.autocast("cpu", torch.bfloat16):
            out = case.loss()(data)
        assert out["loss"].dtype == data["td_error"].dtype == torch.float32, name


def test_the_signature_names_the_options_of_the_head(cases: Any) -> None:
    parameters = inspect.signature(cases["m_iqn"].cls).parameters
    assert list(parameters)[:4] == ["value_network", "tau", "alpha", "clip_min"]
    defaults = {"num_quantiles": 64, "num_policy_quantiles": 32, "kappa": 1.0, "share_fractions": False}
    assert {name: parameters[name].default for name in defaults} == defaults
    assert inspect.signature(cases["qr"].cls).parameters["kappa"].default == 1.0


def test_lazy_network(case: Any, batch: Any) -> None:
    if case.head != "expected":
        pytest.skip("networks of distributions take their sizes explicitly")
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(3))
    loss = case.cls(QValueActor(net, spec=Categorical(3)), **case.kwargs).make_value_estimator(gamma=0.9)
    with pytest.warns(UserWarning, match="No target network updater"):
        assert value(loss, batch(5)).isfinite()
    source, target = loss.value_network_params, loss._modules["target_value_network_params"]  # without the warning
    assert all((target[k] == source[k]).all() for k in source.keys(True, True))


def test_plain_module_as_network(case: Any, batch: Any) -> None:
    if case.head != "expected":
        pytest.skip("these losses take an actor of their own")
    actor = case.actor()
    expected = value(case.loss(actor), batch(5))
    got = value(case.loss(case.actor().module[0].module, action_space="categorical"), batch(5))
    torch.testing.assert_close(got, expected)


def test_train_and_eval_mode_follow_the_actor(batch: Any, cases: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3))
    actor = QValueActor(net, spec=Categorical(3))
    loss = cases["m_dqn"].loss(actor)
    assert value(loss, batch(9), seed=1) != value(loss, batch(9), seed=2)
    actor.eval()
    assert value(loss, batch(9), seed=1) == value(loss, batch(9), seed=2)


def test_batch_norm_network(batch: Any, cases: Any) -> None:
    """Each network has separate statistics, of the passes for learning only, not of those for diagnostics."""
    for name, passes in (("m_dqn", 2), ("soft_dqn", 1), ("al", 2), ("mirl", 1)):
        states = []
        for diagnostics in (True, False):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
            actor = QValueActor(net, spec=Categorical(3)).eval()
            loss = cases[name].loss(actor, perturb=False, diagnostics=diagnostics)
            assert value(loss, batch(9)).isfinite() and net[1].num_batches_tracked == 0
            actor.train()
            value(loss, batch(9))
            assert net[1].num_batches_tracked == 1
            assert loss.target_value_network_params["module", "0", "module", "1", "num_batches_tracked"] == passes
            states.append(dict(loss.state_dict()))
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_module_called_by_another_method(batch: Any, cases: Any) -> None:
    class Twice(nn.Linear):
        def scores(self, x: torch.Tensor) -> torch.Tensor:
            return 2.0 * super().forward(x)

    torch.manual_seed(0)
    net = Twice(4, 3)
    module = TensorDictModule(net, in_keys=["observation"], out_keys=["action_value"], method="scores")
    twice = cases["m_dqn"].loss(QValueActor(module, spec=Categorical(3)), perturb=False)
    plain = nn.Linear(4, 3)
    plain.load_state_dict({k: 2.0 * v for k, v in net.state_dict().items()})
    expected = cases["m_dqn"].loss(QValueActor(plain, spec=Categorical(3)), perturb=False)
    torch.testing.assert_close(value(twice, batch(6)), value(expected, batch(6)))


def test_a_quantile_network_of_ones_own(batch: Any, cases: Any) -> None:
    """``features`` and ``quantiles`` are all it needs."""

    class Own(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def features(self, observation: torch.Tensor) -> torch.Tensor:
            return self.network.features(observation)

        def quantiles(self, features: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
            return self.network.quantiles(features, fractions)

    case = cases["m_iqn"]
    network = case.actor().quantile_network
    own = QuantileQActor(Own(network), spec=Categorical(3))  # type: ignore[arg-type]
    expected = value(case.loss(QuantileQActor(network, spec=Categorical(3)), perturb=False), batch(6))
    torch.testing.assert_close(value(case.loss(own, perturb=False), batch(6)), expected)


def test_a_head_without_a_gradient_is_refused(batch: Any, cases: Any) -> None:
    """``q_values`` is what one finds first, and detached: nothing would be learnt."""

    class Own(ExpectedValue):
        def regress(self, prediction: Any, action: torch.Tensor, target: Any, *, bound: Any, **_: Any) -> Any:
            q = self.q_values(prediction.z, bound, TensorDict()).gather(-1, action.unsqueeze(-1)).squeeze(-1)
            error = q - target.values.squeeze(-1)
            return Regression(error.square(), error.square(), error)

    loss = cases["m_dqn"].loss()
    loss.head = Own()
    with pytest.raises(ValueError, match=r"elementwise of Own.regress must have a gradient, .* from prediction.z"):
        loss(batch(1))
    with torch.no_grad():
        assert loss(batch(1))["loss"].isfinite()
    loss.value_network_params.requires_grad_(False)  # a network that is not trained
    assert loss(batch(1))["loss"].isfinite()
