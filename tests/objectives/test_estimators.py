"""Value estimators: on our losses, on TorchRL's, by name, and against loops."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.objectives import DQNLoss
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from torchrl_reg.objectives import MunchausenDQNLoss, PolyakTargetUpdate, QLearningLoss, SoftDQNLoss
from torchrl_reg.objectives.value import (
    MunchausenTD0Estimator,
    RegValueEstimators,
    SoftTD0Estimator,
    SoftTDLambdaEstimator,
)

GAMMA, TAU, LAMBDA = 0.9, 0.5, 0.7


def q_of(loss: Any, params: Any, observation: Tensor) -> Tensor:
    with params.to_module(loss.value_network):
        return loss.value_network.module[0].module(observation)


def test_soft_td0_on_the_stock_dqn_loss(cases: Any, batch: Any) -> None:
    data = batch(11)
    loss = DQNLoss(cases["m_dqn"].actor())
    PolyakTargetUpdate(loss, rate=0.5)
    loss.make_value_estimator(SoftTD0Estimator.for_loss(loss, gamma=GAMMA, tau=TAU))
    next_q = q_of(loss, loss.target_value_network_params, data["next", "observation"])
    soft = TAU * torch.logsumexp(next_q / TAU, -1)
    target = data["next", "reward"].squeeze(-1) + GAMMA * (~data["next", "terminated"].squeeze(-1)) * soft
    q = q_of(loss, loss.value_network_params, data["observation"])
    chosen = q.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss(data)["loss"], (chosen - target.detach()).square().mean())
    loss(data)["loss"].backward()


@pytest.mark.parametrize("cls", [MunchausenTD0Estimator, SoftTDLambdaEstimator])
def test_estimators_of_the_stored_action_refuse_the_stock_loss(cases: Any, cls: Any) -> None:
    loss = DQNLoss(cases["m_dqn"].actor())
    with pytest.raises(ValueError, match="needs the stored action, got TorchRL's DQNLoss, which overwrites it"):
        cls.for_loss(loss, gamma=GAMMA, tau=TAU, **({"lmbda": 0.9} if cls is SoftTDLambdaEstimator else {}))


def test_double_dqn_is_refused(cases: Any) -> None:
    with pytest.raises(ValueError, match="double_dqn=True"):
        SoftTD0Estimator.for_loss(DQNLoss(cases["m_dqn"].actor(), double_dqn=True), gamma=GAMMA, tau=TAU)


def test_every_way_to_name_an_estimator(cases: Any, batch: Any) -> None:
    expected = cases["m_dqn"].loss()(batch(7))["loss"]
    for how in (
        "munchausen_td0",
        "td0",
        ValueEstimators.TD0,
        RegValueEstimators.MUNCHAUSEN_TD0,
        MunchausenTD0Estimator,
        None,
    ):
        loss = cases["m_dqn"].loss()
        assert loss.make_value_estimator(how, gamma=GAMMA) is loss
        torch.testing.assert_close(loss(batch(7))["loss"], expected)
    instance = MunchausenTD0Estimator.for_loss(loss, gamma=GAMMA)
    torch.testing.assert_close(loss.make_value_estimator(instance)(batch(7))["loss"], expected)
    with pytest.raises(NotImplementedError, match="not implemented for loss SoftDQNLoss"):
        cases["soft_dqn"].loss().make_value_estimator("munchausen_td0")
    with pytest.raises(KeyError, match="Unknown value estimator alias"):
        cases["soft_dqn"].loss().make_value_estimator("nonsense")


def test_coefficients_given_to_the_estimator_are_the_losss(cases: Any, batch: Any) -> None:
    loss = cases["m_dqn"].loss()
    loss.make_value_estimator("munchausen_td0", gamma=GAMMA, tau=0.2, alpha=0.8, clip_min=-0.7)
    assert (float(loss.tau), float(loss.alpha), float(loss.clip_min)) == (0.2, 0.8, -0.7)
    direct = cases["m_dqn"].loss(tau=0.2, alpha=0.8, clip_min=-0.7)
    torch.testing.assert_close(loss(batch(7))["loss"], direct(batch(7))["loss"])
    with pytest.raises(ValueError, match="tau must be"):
        loss.make_value_estimator("munchausen_td0", tau=-1.0)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]"):
        loss.make_value_estimator(gamma=1.5)


def test_gamma_is_exact_in_float64(cases: Any) -> None:
    loss = cases["m_dqn"].loss().double()
    assert float(loss.value_estimator.gamma) == 0.9


def sequence(batch: Any) -> TensorDict:
    data = batch(5, 6, dtype=torch.float64)
    data["next", "done"][:, -1] = False
    data["next", "terminated"][:, -1] = False
    data.names = [None, "time"]
    return data


def explicit_lambda_return(data: Any, q: Tensor, next_q: Tensor, lam: float, alpha: float, clip: float) -> Tensor:
    """The docstring's recursion, one row and one step at a time."""
    targets = torch.zeros(data.shape, dtype=torch.float64)
    for b in range(data.shape[0]):
        following = None
        for t in reversed(range(data.shape[1])):
            value = TAU * torch.logsumexp(next_q[b, t] / TAU, -1)
            log_pi = TAU * torch.log_softmax(q[b, t] / TAU, -1)[data["action"][b, t]]
            alive = 1.0 - float(data["next", "terminated"][b, t])
            cut = following is None or bool(data["next", "done"][b, t])
            tail = value if cut else (1 - lam) * value + lam * following
            bonus = alpha * log_pi.clamp(clip, 0.0)
            targets[b, t] = data["next", "reward"][b, t, 0] + bonus + GAMMA * alive * tail
            following = targets[b, t] - log_pi
    return targets


@pytest.mark.parametrize("lam", [0.0, LAMBDA, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_soft_td_lambda_is_its_recursion(cases: Any, batch: Any, lam: float, alpha: float) -> None:
    name = "m_dqn" if alpha else "soft_dqn"
    loss = cases[name].loss().double()
    loss.make_value_estimator("soft_tdlambda", gamma=GAMMA, lmbda=lam)
    data = sequence(batch)
    q = q_of(loss, loss.target_value_network_params, data["observation"])
    next_q = q_of(loss, loss.target_value_network_params, data["next", "observation"])
    expected = explicit_lambda_return(data, q, next_q, lam, alpha, -0.3)
    prediction = q_of(loss, loss.value_network_params, data["observation"])
    prediction = prediction.gather(-1, data["action"].unsqueeze(-1)).squeeze(-1)
    loss(data)
    torch.testing.assert_close(data["td_error"].squeeze(-1), (prediction - expected).square(), rtol=0, atol=1e-9)


def test_lambda_zero_is_one_step(cases: Any, batch: Any) -> None:
    data = sequence(batch)
    for name in ("soft_dqn", "m_dqn"):
        lam, one = cases[name].loss().double(), cases[name].loss().double()
        lam.make_value_estimator(ValueEstimators.TDLambda, gamma=GAMMA, lmbda=0.0)
        torch.testing.assert_close(lam(data)["loss"], one(data)["loss"], rtol=0, atol=1e-10)


def test_forward_writes_targets_and_advantages(cases: Any, batch: Any) -> None:
    data = batch(7)
    actor = cases["m_dqn"].actor()
    estimator = MunchausenTD0Estimator(gamma=GAMMA, value_network=actor, tau=TAU, alpha=0.5, clip_min=-0.3)
    out = estimator(data)
    q = actor.module[0].module(data["observation"])
    loss = MunchausenDQNLoss(actor, tau=TAU, alpha=0.5, clip_min=-0.3, delay_value=False)
    loss.make_value_estimator(gamma=GAMMA)
    expected = loss.value_estimator.value_estimate(data)
    torch.testing.assert_close(out["value_target"], expected)
    soft = TAU * torch.logsumexp(q / TAU, -1, keepdim=True)
    torch.testing.assert_close(out["advantage"], expected - soft)


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_an_estimator_by_itself_reads_its_losss_action_space_and_the_target_parameters(
    cases: Any, batch: Any, one_hot: bool, padded: bool
) -> None:
    loss = cases["m_dqn"].loss(cases["m_dqn"].actor(one_hot=one_hot)).double()
    loss.make_value_estimator("soft_tdlambda", gamma=GAMMA, lmbda=LAMBDA)
    one_step = MunchausenTD0Estimator.for_loss(loss, gamma=0.9)
    lam = SoftTDLambdaEstimator.for_loss(loss, gamma=0.9, lmbda=LAMBDA)
    data, length = sequence(batch), 4 if padded else 6
    online, target = loss.value_network_params, loss.target_value_network_params
    q, next_q = (q_of(loss, target, data[key]) for key in ("observation", ("next", "observation")))
    expected = [explicit_lambda_return(data[:, :length], q, next_q, x, 0.5, -0.3) for x in (0.0, LAMBDA)]
    value = TAU * torch.logsumexp(q_of(loss, online, data["observation"]) / TAU, -1)
    if padded:
        data["collector", "mask"] = (torch.arange(6) < length).expand(5, 6).unsqueeze(-1)
        data["next", "reward"][:, length:] = torch.nan
    if one_hot:
        data["action"] = torch.nn.functional.one_hot(data["action"], 3)
    for estimator, targets in zip((one_step, lam), expected, strict=True):
        estimator(data, params=online, target_params=target)
        found = {name: data[name].squeeze(-1)[:, :length] for name in ("value_target", "advantage")}
        torch.testing.assert_close(found["value_target"], targets[:, :length], rtol=0, atol=1e-6)
        torch.testing.assert_close(found["advantage"], targets - value[:, :length], rtol=0, atol=1e-6)


def test_wrong_reward_shape(cases: Any, batch: Any) -> None:
    data = batch(7)
    data["next", "reward"] = data["next", "reward"].squeeze(-1)
    with pytest.raises(RuntimeError, match=r"reward and terminated must have shape \(7, 1\)"):
        cases["soft_dqn"].loss()(data)


def test_names_are_registered() -> None:
    loss = SoftDQNLoss(torch.nn.Linear(4, 3), action_space="categorical")
    assert isinstance(loss.make_value_estimator("soft_td0").value_estimator, SoftTD0Estimator)


def test_for_loss_with_nothing_but_the_loss(cases: Any, batch: Any) -> None:
    loss = DQNLoss(cases["m_dqn"].actor())
    PolyakTargetUpdate(loss, rate=0.5)
    loss.make_value_estimator(SoftTD0Estimator.for_loss(loss))
    assert loss(batch(3))["loss"].isfinite()


def test_foreign_backups_are_refused(cases: Any) -> None:
    pairs = [("soft_dqn", TD0Estimator), ("soft_dqn", MunchausenTD0Estimator), ("m_dqn", SoftTD0Estimator)]
    for name, cls in [*pairs, ("al", SoftTD0Estimator), ("iqn", MunchausenTD0Estimator)]:
        loss = cases[name].loss()
        with pytest.raises(NotImplementedError, match=f"got {cls.__name__}"):
            loss.make_value_estimator(cls, gamma=GAMMA)
        with pytest.raises(NotImplementedError, match=f"got {cls.__name__}"):
            loss.make_value_estimator(cls(gamma=GAMMA, value_network=loss.value_network))


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


@pytest.mark.parametrize("name", ["iqn", "m_iqn", "c51"])
@pytest.mark.parametrize("how", ["tdlambda", "td1", "regularized_tdlambda"])
def test_lambda_returns_of_draws_and_atoms_are_refused(cases: Any, name: str, how: str) -> None:
    with pytest.raises(NotImplementedError, match="expected values or fixed quantiles, got (Implicit|Categ)"):
        cases[name].loss().make_value_estimator(how, gamma=GAMMA)


def test_td_lambda_of_the_maximum_is_torchrls(cases: Any, batch: Any) -> None:
    from torchrl_reg.objectives import QLearningLoss

    loss = QLearningLoss(cases["m_dqn"].actor(), delay_value=False).double()
    loss.make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
    stock = DQNLoss(cases["m_dqn"].actor(), delay_value=False, loss_function="smooth_l1").double()
    stock.make_value_estimator(ValueEstimators.TDLambda, gamma=GAMMA, lmbda=LAMBDA)
    torch.testing.assert_close(loss(sequence(batch))["loss"], stock(sequence(batch))["loss"], rtol=0, atol=1e-7)


def test_td1_is_the_return_to_the_end_of_the_data(cases: Any, batch: Any) -> None:
    one, lam = cases["m_dqn"].loss().double(), cases["m_dqn"].loss().double()
    one.make_value_estimator("td1", gamma=GAMMA)
    lam.make_value_estimator("soft_tdlambda", gamma=GAMMA, lmbda=1.0)
    torch.testing.assert_close(one(sequence(batch))["loss"], lam(sequence(batch))["loss"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("lmbda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("name", ["m_dqn", "qr"])
def test_nan_after_a_terminal_state_does_not_reach_a_lambda_return(
    cases: Any, batch: Any, name: str, lmbda: float
) -> None:
    data = batch(3, 6)
    loss = cases[name].loss().make_value_estimator("tdlambda", gamma=GAMMA, lmbda=lmbda)
    expected = loss(data.clone())["loss"]
    ended = data["next", "terminated"].squeeze(-1)
    assert ended.any()
    data["next", "observation"][ended] = torch.nan
    torch.testing.assert_close(loss(data)["loss"], expected)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 0.95, 1.0])
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


def test_what_is_refused_changes_nothing(cases: Any, batch: Any) -> None:
    loss, data = cases["m_iqn"].loss(), batch(2, 3)
    torch.manual_seed(0)
    expected = loss(data.clone())["loss"]
    with pytest.raises(NotImplementedError, match="got ImplicitQuantiles"):
        loss.make_value_estimator("tdlambda", gamma=0.5, lmbda=0.9, tau=0.1)
    torch.manual_seed(0)
    torch.testing.assert_close(loss(data)["loss"], expected)
    assert float(loss.tau) == 0.5


def test_n_step_data_have_no_lambda_returns(cases: Any, batch: Any) -> None:
    data = batch(2, 3).set("steps_to_next_obs", torch.full((2, 3, 1), 2))
    loss = cases["qr"].loss().make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
    with pytest.raises(ValueError, match="single steps for a lambda-return, got n-step"):
        loss(data)


def test_a_subclass_may_take_fewer_estimators(cases: Any) -> None:
    class OneStep(QLearningLoss):
        SUPPORTED_VALUE_ESTIMATORS = (ValueEstimators.TD0, RegValueEstimators.REGULARIZED_TD0)

    with pytest.raises(NotImplementedError):
        OneStep(cases["m_dqn"].actor()).make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
