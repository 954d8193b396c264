"""The networks a loss takes: lazy ones, plain modules, dropout, batch normalization, other methods than forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical
from torchrl.modules import QValueActor

from torchrl_reg.modules import QuantileQActor


def value(loss: Any, data: Any, seed: int = 3) -> torch.Tensor:
    torch.manual_seed(seed)
    return loss(data)["loss"]


def test_lazy_network(case: Any, batch: Any) -> None:
    if case.distributional:
        pytest.skip("networks of distributions take their sizes explicitly")
    torch.manual_seed(0)
    net = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(3))
    loss = case.cls(QValueActor(net, spec=Categorical(3)), **case.kwargs).make_value_estimator(gamma=0.9)
    with pytest.warns(UserWarning, match="No target network updater"):
        assert value(loss, batch(5)).isfinite()
    source, target = loss.value_network_params, loss._target_params()
    assert all((target[k] == source[k]).all() for k in source.keys(True, True))


def test_plain_module_as_network(case: Any, batch: Any) -> None:
    if case.distributional:
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
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    actor = QValueActor(net, spec=Categorical(3)).eval()
    loss = cases["m_dqn"].loss(actor, perturb=False)
    assert value(loss, batch(9)).isfinite()
    actor.train()
    value(loss, batch(9))
    assert net[1].num_batches_tracked == 1  # the online pass; the target keeps statistics of its own
    assert loss.target_value_network_params["module", "0", "module", "1", "num_batches_tracked"] == 2


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
