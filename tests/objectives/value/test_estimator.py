"""Value estimators: on our losses, on TorchRL's, by name, and alone; their equations are in test_slots.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.objectives import DQNLoss
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from torchrl_reg.modules import ActionPrior
from torchrl_reg.objectives import PolyakTargetUpdate, QLearningLoss, value

GAMMA, TAU, LAMBDA = 0.9, 0.5, 0.7


def sequence(batch: Any) -> TensorDict:
    data = batch(5, 6, dtype=torch.float64)
    data["next", "done"][:, -1] = False
    data["next", "terminated"][:, -1] = False
    data.names = [None, "time"]
    return data


def prior() -> ActionPrior:
    return ActionPrior(3, probabilities=[0.6, 0.3, 0.1], beta=2.0)


@pytest.mark.parametrize(
    ("name", "cls", "kwargs"),
    [
        ("soft_dqn", value.SoftTD0Estimator, lambda: {"tau": TAU}),
        ("soft_dqn", value.SoftTD0Estimator, dict),
        ("mirl", value.PriorSoftTD0Estimator, lambda: {"prior": prior()}),
    ],
)
def test_on_the_stock_dqn_loss(cases: Any, batch: Any, name: str, cls: Any, kwargs: Any) -> None:
    ours = cases[name].loss(**({} if kwargs() else {"tau": 0.03})).make_value_estimator(gamma=GAMMA)
    stock = DQNLoss(cases[name].actor())
    PolyakTargetUpdate(stock, rate=0.5)
    stock.target_value_network_params.data.update_(ours.target_value_network_params.data)
    stock.make_value_estimator(cls.for_loss(stock, gamma=GAMMA, **kwargs()))
    found = stock(batch(11))["loss"]
    torch.testing.assert_close(found, ours(batch(11))["loss"])
    found.backward()
    with pytest.raises(ValueError, match="double_dqn=True"):
        cls.for_loss(DQNLoss(cases[name].actor(), double_dqn=True), gamma=GAMMA, **kwargs())


@pytest.mark.parametrize("cls", [value.MunchausenTD0Estimator, value.SoftTDLambdaEstimator])
def test_estimators_of_the_stored_action_refuse_the_stock_loss(cases: Any, cls: Any) -> None:
    with pytest.raises(ValueError, match="needs the stored action, got TorchRL's DQNLoss, which overwrites it"):
        cls.for_loss(DQNLoss(cases["m_dqn"].actor()), gamma=GAMMA, tau=TAU)


@pytest.mark.parametrize(
    ("name", "alias", "cls"),
    [("m_dqn", "munchausen_td0", value.MunchausenTD0Estimator), ("mirl", "prior_soft_td0", value.PriorSoftTD0Estimator)]
    + [("soft_dqn", "soft_td0", value.SoftTD0Estimator)],
)
def test_every_way_to_name_an_estimator(cases: Any, batch: Any, name: str, alias: str, cls: Any) -> None:
    expected = cases[name].loss()(batch(7))["loss"]
    for how in (alias, "td0", ValueEstimators.TD0, value.RegValueEstimators[alias.upper()], cls, None):
        loss = cases[name].loss()
        assert loss.make_value_estimator(how, gamma=GAMMA) is loss and type(loss.value_estimator) is cls
        torch.testing.assert_close(loss(batch(7))["loss"], expected)
    instance = cls.for_loss(loss, gamma=GAMMA)
    torch.testing.assert_close(loss.make_value_estimator(instance)(batch(7))["loss"], expected)
    with pytest.raises(KeyError, match="Unknown value estimator alias"):
        loss.make_value_estimator("nonsense")
    if name == "soft_dqn":
        with pytest.raises(NotImplementedError, match="not implemented for loss SoftDQNLoss"):
            loss.make_value_estimator("munchausen_td0")


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("soft_dqn", TD0Estimator),
        ("soft_dqn", value.MunchausenTD0Estimator),
        ("m_dqn", value.SoftTD0Estimator),
        ("al", value.SoftTD0Estimator),
        ("iqn", value.MunchausenTD0Estimator),
        ("mirl", value.SoftTD0Estimator),
    ],
)
def test_foreign_backups_are_refused(cases: Any, name: str, cls: Any) -> None:
    loss = cases[name].loss()
    for given in (cls, cls(gamma=GAMMA, value_network=loss.value_network)):
        with pytest.raises(NotImplementedError, match=f"takes a .*, got {cls.__name__}"):
            loss.make_value_estimator(given)


def test_an_estimator_of_ours_shares_the_losss_slots(cases: Any, batch: Any) -> None:
    """Assigned once, the temperature holds for the estimator too, on its own or in the loss; and it is saved once."""
    loss = cases["m_dqn"].loss()
    loss.tau = 0.2
    fresh = cases["m_dqn"].loss(tau=0.2)
    targets = [x.value_estimator.value_estimate(batch(3), x.target_value_network_params) for x in (loss, fresh)]
    torch.testing.assert_close(*targets)
    twin = copy.deepcopy(loss)
    twin.tau = 0.7
    assert float(twin.value_estimator.regularizer.tau) == 0.7 and float(loss.value_estimator.regularizer.tau) == 0.2
    assert sum("tau" in key for key in loss.state_dict()) == 1


@pytest.mark.parametrize("name", ["td0", "soft_tdlambda"])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_alone_it_writes_the_targets_of_the_loss(
    cases: Any, batch: Any, name: str, one_hot: bool, padded: bool
) -> None:
    loss = cases["m_dqn"].loss(cases["m_dqn"].actor(one_hot=one_hot)).double()
    loss.make_value_estimator(name, gamma=GAMMA, **({} if name == "td0" else {"lmbda": LAMBDA}))
    data, counts = sequence(batch), torch.ones(5, 6, dtype=torch.bool)
    online, target = loss.value_network_params, loss.target_value_network_params
    with torch.no_grad(), online.to_module(loss.value_network):
        q = loss.value_network.module[0].module(data["observation"])
    chosen = q.gather(-1, data["action"].unsqueeze(-1))
    if padded:
        counts = (torch.arange(6) < 4).expand(5, 6)
        data["collector", "mask"] = counts.unsqueeze(-1)
        data["next", "reward"][~counts] = torch.nan
    if one_hot:
        data["action"] = torch.nn.functional.one_hot(data["action"], 3)
    loss(data)
    estimator = type(loss.value_estimator).for_loss(loss, gamma=GAMMA, **({} if name == "td0" else {"lmbda": LAMBDA}))
    out = estimator(data.clone(), params=online, target_params=target)
    errors = (chosen - out["value_target"]).square()
    torch.testing.assert_close(errors[counts], data["td_error"][counts], rtol=0, atol=1e-6)
    soft = TAU * torch.logsumexp(q / TAU, -1, keepdim=True)
    torch.testing.assert_close(out["advantage"][counts], (out["value_target"] - soft)[counts], rtol=0, atol=1e-6)


def test_alone_with_nothing_but_a_network(cases: Any, batch: Any) -> None:
    data, actor = batch(5), cases["mirl"].actor()
    uniform = value.PriorSoftTD0Estimator(gamma=GAMMA, value_network=actor)
    given = value.PriorSoftTD0Estimator(gamma=GAMMA, value_network=actor, prior=ActionPrior(3, beta=1.0))
    torch.testing.assert_close(uniform.value_estimate(data), given.value_estimate(data))


# -- lambda-returns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soft_dqn", "m_dqn"])
def test_no_trace_and_a_full_one(cases: Any, batch: Any, name: str) -> None:
    def result(how: Any, **kwargs: Any) -> torch.Tensor:
        return cases[name].loss().double().make_value_estimator(how, gamma=GAMMA, **kwargs)(sequence(batch))["loss"]

    torch.testing.assert_close(result(ValueEstimators.TDLambda, lmbda=0.0), result("td0"), rtol=0, atol=1e-10)
    torch.testing.assert_close(result("td1"), result("soft_tdlambda", lmbda=1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["m_dqn", "qr"])
@pytest.mark.parametrize("garbage", [torch.nan, 50.0])
def test_padded_steps_do_not_reach_a_lambda_return(
    cases: Any, batch: Any, name: str, lmbda: float, garbage: float
) -> None:
    """Sequences that are cut without ``done``, as ``split_trajectories`` makes them, give what each gives by itself."""
    data, lengths = batch(3, 6, dtype=torch.float64), [4, 1, 6]
    data.names = [None, "time"]
    data["next", "done"], data["next", "terminated"] = torch.zeros(2, 3, 6, 1).bool().unbind()
    data["next", "done"][0, 1] = data["next", "terminated"][2, 2] = data["next", "done"][2, 2] = True
    data["next", "observation"][2, 2] = torch.nan
    loss = cases[name].loss(reduction="none").double().make_value_estimator("tdlambda", gamma=GAMMA, lmbda=lmbda)
    alone = [loss(data[i : i + 1, :length].clone())["loss"][0] for i, length in enumerate(lengths)]
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(-1)
    data["collector", "mask"] = mask.unsqueeze(-1)
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        data[key][~mask] = garbage
    out = loss(data)["loss"]
    torch.testing.assert_close(out[mask], torch.cat(alone), rtol=0, atol=1e-10)
    assert not out[~mask].any()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in loss.parameters())


@pytest.mark.parametrize("name", ["iqn", "m_iqn", "c51"])
@pytest.mark.parametrize("how", ["tdlambda", "td1", "regularized_tdlambda"])
def test_lambda_returns_of_draws_and_atoms_are_refused(cases: Any, name: str, how: str) -> None:
    """And the loss stays as it was."""
    loss = cases[name].loss()
    kind, coefficients = type(loss.value_estimator), {"tau": 0.1} if name == "m_iqn" else {}
    with pytest.raises(NotImplementedError, match="expected values or fixed quantiles, got (Implicit|Categ)"):
        loss.make_value_estimator(how, gamma=0.5, **coefficients)
    assert type(loss.value_estimator) is kind and float(loss.value_estimator.gamma) == GAMMA
    assert name != "m_iqn" or float(loss.tau) == TAU


def test_data_of_other_shapes_are_refused(cases: Any, batch: Any) -> None:
    data = batch(2, 3).set("steps_to_next_obs", torch.full((2, 3, 1), 2))
    loss = cases["qr"].loss().make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
    with pytest.raises(ValueError, match="single steps for a lambda-return, got n-step"):
        loss(data)
    data = batch(7)
    data["next", "reward"] = data["next", "reward"].squeeze(-1)
    with pytest.raises(RuntimeError, match=r"reward and terminated must have shape \(7, 1\)"):
        cases["soft_dqn"].loss()(data)


def test_a_subclass_may_take_fewer_estimators(cases: Any) -> None:
    class OneStep(QLearningLoss):
        SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0, value.RegValueEstimators.REGULARIZED_TD0)

    with pytest.raises(NotImplementedError):
        OneStep(cases["m_dqn"].actor()).make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
