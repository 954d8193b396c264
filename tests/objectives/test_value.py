"""Value estimators: on our losses, on TorchRL's, by name, and alone; their equations are in test_slots.py.

Q(lambda) targets of rollouts: what theory says of them, and a loss that reads them.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tensordict
import torch
from tabular_cases import table
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.objectives import DQNLoss
from torchrl.objectives.utils import ValueEstimators
from torchrl.objectives.value import TD0Estimator

from torchrl_reg.modules import ActionPrior
from torchrl_reg.objectives import AdvantageGap, Munchausen, PolyakTargetUpdate, QLearningLoss, value
from torchrl_reg.objectives.value import RegularizedQLambdaEstimator
from torchrl_reg.regularizers import Entropy, HardMax, Regularizer, Tsallis
from torchrl_reg.tabular import (
    TabularMDP,
    munchausen_value_iteration,
    soft_value_iteration,
    tsallis_value_iteration,
    value_iteration,
)

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


# -- lambda-returns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soft_dqn", "m_dqn"])
def test_lambda_returns_without_a_trace_and_with_a_full_one(cases: Any, batch: Any, name: str) -> None:
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


@pytest.mark.parametrize("how", ["tdlambda", "td1", "regularized_qlambda"])
@pytest.mark.parametrize("masked", [False, True])
def test_returns_run_along_time_whatever_stands_behind_or_before_it(
    cases: Any, batch: Any, how: str, masked: bool
) -> None:
    """Three agents ``[B, T, N]`` are three sequences; so is a batch whose first dimension is named time."""
    wide = batch(2, 5, 3, dtype=torch.float64)
    for flag in ("done", "terminated"):
        wide["next", flag][:, :-1] = False
        wide["next", flag][1, 2] = True
    agents = TensorDict(dict(wide.items()), [2, 5], names=[None, "time"])
    if masked:
        agents["collector", "mask"] = torch.tensor([[True] * 4 + [False], [True] * 5])
    loss = (
        cases["m_dqn"]
        .loss()
        .double()
        .make_value_estimator(how, gamma=GAMMA, **({"lmbda": LAMBDA} if how[-1] != "1" else {}))
    )

    def returns(data: TensorDict) -> Tensor:
        return loss.value_estimator.value_estimate(data.clone(), loss.target_value_network_params)

    def of_agent(number: int) -> TensorDict:
        rows = wide[..., number].clone()
        return rows.set(("collector", "mask"), agents["collector", "mask"]) if masked else rows

    alone = torch.stack([returns(of_agent(number)) for number in range(3)], 2)
    torch.testing.assert_close(returns(agents), alone, rtol=0, atol=1e-12)
    first = of_agent(0).transpose(0, 1).contiguous()
    first.names = ["time", None]
    torch.testing.assert_close(returns(first).transpose(0, 1), alone[..., 0, :], rtol=0, atol=1e-12)


def test_the_trace_is_corrected_by_the_target_networks_policy(cases: Any, batch: Any) -> None:
    """The bonus may be the online one's; without a bonus the two losses are one."""
    data, found = sequence(batch), []
    for online in (False, True):
        shaping = Munchausen(alpha=0.0, clip_min=-0.3, online=online)
        loss = QLearningLoss(cases["m_dqn"].actor(), regularizer=Entropy(TAU), shaping=shaping).double()
        loss.make_value_estimator("tdlambda", gamma=GAMMA, lmbda=LAMBDA)
        PolyakTargetUpdate(loss, rate=0.5)
        for parameter in loss.target_value_network_params.values(True, True):
            parameter.data.mul_(1.5)
        found.append(loss(data)["loss"])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)


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


# -- Q(lambda) of rollouts ------------------------------------------------------------------------------------------


TABLE_TAU, STATES, ACTIONS, STEPS, ENVS = 0.4, 6, 3, 12, 40


@pytest.fixture(scope="module")
def mdp() -> TabularMDP:
    """Deterministic, so that a return equals its expectation."""
    draw = torch.Generator().manual_seed(3)
    following = torch.randint(STATES, (STATES, ACTIONS), generator=draw)
    P = nn.functional.one_hot(following, STATES).double()
    return TabularMDP(P, torch.randn(STATES, ACTIONS, generator=draw, dtype=torch.float64), GAMMA)


@pytest.fixture(scope="module")
def q() -> Tensor:
    return torch.randn(STATES, ACTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def rollout(mdp: TabularMDP, q: Tensor, behaviour: Tensor, seed: int = 0) -> TensorDict:
    """``[ENVS, STEPS]`` steps of the policy ``behaviour [S, A]``, with the values ``q [S, A]`` recorded."""
    draw = torch.Generator().manual_seed(seed)
    state = torch.randint(STATES, (ENVS,), generator=draw)
    states, actions = [state], []
    for _ in range(STEPS):
        actions.append(torch.multinomial(behaviour[state], 1, generator=draw).squeeze(-1))
        state = mdp.P[state, actions[-1]].argmax(-1)
        states.append(state)
    path, action = torch.stack(states, 1), torch.stack(actions, 1)
    nothing = torch.zeros(ENVS, STEPS, 1, dtype=torch.bool)
    one_hot = nn.functional.one_hot(path, STATES).double()
    following = {
        "observation": one_hot[:, 1:],
        "reward": mdp.r[path[:, :-1], action].unsqueeze(-1),
        "done": nothing.clone(),
        "terminated": nothing.clone(),
    }
    entries = {"observation": one_hot[:, :-1], "action": action, "action_value": q[path[:, :-1]], "next": following}
    return TensorDict(entries, [ENVS, STEPS])


def targets(data: TensorDict, q: Tensor, regularizer: Regularizer, lmbda: float, **options: Any) -> Tensor:
    shaping = options.pop("shaping", None)
    loss = QLearningLoss(table(q), regularizer=regularizer, shaping=shaping, delay_value=False)
    estimator = RegularizedQLambdaEstimator.for_loss(loss, gamma=GAMMA, lmbda=lmbda, **options)
    loss.make_value_estimator(estimator)
    return estimator(data.clone())["value_target"].squeeze(-1)


def taken(data: TensorDict, q: Tensor) -> Tensor:
    """``q(s_t, a_t)`` of a rollout."""
    return q[data["observation"].argmax(-1), data["action"]]


UNIFORM = torch.full((STATES, ACTIONS), 1 / ACTIONS, dtype=torch.float64)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("regularizer", "shaping", "iteration"),
    [
        (HardMax(), None, value_iteration),
        (Entropy(TABLE_TAU), None, lambda mdp: soft_value_iteration(mdp, TABLE_TAU)),
        (
            Tsallis(TABLE_TAU),
            None,
            lambda mdp: tsallis_value_iteration(mdp, TABLE_TAU),
        ),  # also for actions off its support
        (Entropy(TABLE_TAU), Munchausen(0.9, None), lambda mdp: munchausen_value_iteration(mdp, TABLE_TAU, 0.9)),
    ],
)
def test_the_optimum_is_the_fixed_point_whatever_acts(
    mdp: Any, lmbda: float, regularizer: Any, shaping: Any, iteration: Any
) -> None:
    q = iteration(mdp).q
    data = rollout(mdp, q, UNIFORM)
    torch.testing.assert_close(targets(data, q, regularizer, lmbda, shaping=shaping), taken(data, q), rtol=0, atol=1e-8)


@pytest.mark.parametrize("lmbda", [0.65, 0.95, 1.0])
def test_pengs_form_is_biased_low_by_actions_that_are_not_greedy(mdp: TabularMDP, lmbda: float) -> None:
    solution = value_iteration(mdp)
    data = rollout(mdp, solution.q, UNIFORM)
    bias = targets(data, solution.q, HardMax(), lmbda, correct=False) - taken(data, solution.q)
    assert bias.max() < 1e-9 and bias.mean() < -0.3
    greedy = rollout(mdp, solution.q, HardMax()(solution.q).pi)
    found = targets(greedy, solution.q, HardMax(), lmbda, correct=False)
    torch.testing.assert_close(found, taken(greedy, solution.q), rtol=0, atol=1e-9)


@pytest.mark.parametrize("small", [Entropy(1e-7), Tsallis(1e-7)])
def test_without_temperature_the_returns_are_the_corrected_ones_not_pengs(
    mdp: TabularMDP, q: Tensor, small: Regularizer
) -> None:
    data = rollout(mdp, q, UNIFORM)
    limit, hard, pengs = (
        targets(data, q, regularizer, 0.65, **how)
        for regularizer, how in ((small, {}), (HardMax(), {"correct": True}), (HardMax(), {"correct": False}))
    )
    torch.testing.assert_close(limit, hard, rtol=0, atol=1e-5)
    assert (limit - pengs).abs().max() > 0.5


@pytest.mark.parametrize("lmbda", [0.5, 0.9])
@pytest.mark.parametrize("correct", [True, False])  # an entropy's share of the cost is its correction
def test_the_entropy_of_each_step_is_the_correction_off_the_fixed_point_too(
    mdp: TabularMDP, q: Tensor, lmbda: float, correct: bool
) -> None:
    """``G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda (G_{t+1} - tau ln pi(a_{t+1}|s_{t+1})))``, written out."""
    data = rollout(mdp, q, UNIFORM)
    reward, following = data["next", "reward"].squeeze(-1), data["next", "observation"].argmax(-1)
    values, log_pi = TABLE_TAU * (q / TABLE_TAU).logsumexp(-1), TABLE_TAU * (q / TABLE_TAU).log_softmax(-1)

    def returns(entropy: float) -> Tensor:
        found = [reward[:, -1] + GAMMA * values[following[:, -1]]]
        for t in reversed(range(STEPS - 1)):
            s = following[:, t]
            later = found[0] - entropy * log_pi[s, data["action"][:, t + 1]]
            found.insert(0, reward[:, t] + GAMMA * ((1 - lmbda) * values[s] + lmbda * later))
        return torch.stack(found, 1)

    got = targets(data, q, Entropy(TABLE_TAU), lmbda, correct=correct)
    torch.testing.assert_close(got, returns(1.0), rtol=0, atol=1e-12)
    assert (got - returns(0.0)).abs().max() > 1  # what dropping the term costs


def test_q_lambda_without_a_trace_and_with_a_full_one(mdp: TabularMDP, q: Tensor) -> None:
    data = rollout(mdp, q, UNIFORM)
    reward = data["next", "reward"].squeeze(-1)
    best = q[data["next", "observation"].argmax(-1)].amax(-1)
    torch.testing.assert_close(targets(data, q, HardMax(), 0.0), reward + GAMMA * best)
    discounts = GAMMA ** torch.arange(STEPS, dtype=torch.float64)
    whole = (reward * discounts).sum(1) + GAMMA**STEPS * best[:, -1]
    torch.testing.assert_close(targets(data, q, HardMax(), 1.0, correct=False)[:, 0], whole)


def test_the_ends_of_episodes(mdp: TabularMDP, q: Tensor) -> None:
    data = rollout(mdp, q, UNIFORM)
    data["next", "done"][:, 4], data["next", "terminated"][:20, 4] = True, True  # rows from 20 on: a time limit
    # What the collector recorded at step 5 belongs to another episode; s' of step 4 is where this one ended.
    data["next", "observation"][:, 4] = nn.functional.one_hot(torch.tensor(2), STATES).double()
    found = targets(data, q, Entropy(TABLE_TAU), 0.8)
    other = data.clone()
    other["next", "reward"][:, 5:] += 100.0
    other["action_value"][:, 5:] += 100.0
    torch.testing.assert_close(targets(other, q, Entropy(TABLE_TAU), 0.8)[:, :5], found[:, :5], rtol=0, atol=0)
    reward = data["next", "reward"][:, 4, 0]
    value = Entropy(TABLE_TAU)(q).value[2]
    torch.testing.assert_close(found[:20, 4], reward[:20])
    torch.testing.assert_close(found[20:, 4], reward[20:] + GAMMA * value)
    torch.testing.assert_close(targets(data, q, Entropy(TABLE_TAU), 0.8, time_limits_end=True)[:, 4], reward)


def test_a_termination_that_is_not_called_done_ends_the_episode(mdp: TabularMDP, q: Tensor) -> None:
    data = rollout(mdp, q, UNIFORM)
    data["next", "terminated"][:20, 4] = True
    found = targets(data, q, Entropy(TABLE_TAU), 0.8)
    data["next", "done"][:20, 4] = True
    torch.testing.assert_close(found, targets(data, q, Entropy(TABLE_TAU), 0.8), rtol=0, atol=0)


@pytest.mark.parametrize("time_limits_end", [True, False])
def test_the_persistent_gap_of_an_episode_that_ends_is_that_at_s(
    mdp: TabularMDP, q: Tensor, time_limits_end: bool
) -> None:
    """A time limit has a next state, unless treated as terminal; the recorded one is of the next episode."""
    data = rollout(mdp, q, UNIFORM)
    data["next", "done"][:, 4], data["next", "terminated"][:20, 4] = True, True  # rows from 20 on: a time limit
    how: dict[str, Any] = {"shaping": AdvantageGap(0.5, persistent=True), "time_limits_end": time_limits_end}
    found = targets(data, q, HardMax(), 0.8, **how)[:, 4] - data["next", "reward"][:, 4, 0]
    s, following, action = (
        data["observation"][:, 4].argmax(-1),
        data["next", "observation"][:, 4].argmax(-1),
        data["action"][:, 4],
    )
    here, there = (q[at].amax(-1) - q[at, action] for at in (s, following))
    expected = -0.5 * here
    if not time_limits_end:
        expected[20:] = (GAMMA * q[following].amax(-1) - 0.5 * torch.minimum(here, there))[20:]
    torch.testing.assert_close(found, expected)
    assert (there < here)[20:].any()


def test_each_step_bootstraps_on_its_own_next_state() -> None:
    """Two steps whose next states differ in value: some published scripts take the last one for both."""
    q = torch.tensor([[1.0, 0.0], [5.0, 0.0], [9.0, 0.0]], dtype=torch.float64)
    states = torch.eye(3, dtype=torch.float64)
    flags = torch.zeros(1, 2, 1, dtype=torch.bool)
    following = {"observation": states[None, 1:], "reward": flags.double(), "done": flags, "terminated": flags}
    entries = {"observation": states[None, :2], "action": torch.zeros(1, 2, dtype=torch.long), "next": following}
    data = TensorDict({**entries, "action_value": q[None, :2]}, [1, 2])
    loss = QLearningLoss(table(q), delay_value=False).make_value_estimator("regularized_qlambda", gamma=0.5, lmbda=0.5)
    # 9/2 at the second step; (5 + (4.5 - 5)/2)/2 at the first.
    assert loss.value_estimator(data)["value_target"].flatten().tolist() == [2.375, 4.5]


def test_a_loss_reads_the_targets_and_nothing_behind_them(mdp: TabularMDP, q: Tensor) -> None:
    data = rollout(mdp, q, UNIFORM)
    how: dict[str, Any] = {"regularizer": Entropy(TABLE_TAU), "delay_value": False, "loss_function": "half_l2"}
    loss = QLearningLoss(table(q), **how).make_value_estimator("regularized_qlambda", gamma=GAMMA, lmbda=0.7)
    assert set(loss.in_keys) == {"observation", "action", "value_target"}
    rows = loss.value_estimator(data).reshape(-1).select(*loss.in_keys)
    out = loss(rows)
    errors = taken(data, q).reshape(-1) - rows["value_target"].squeeze(-1)
    torch.testing.assert_close(out["loss"], 0.5 * errors.square().mean())
    torch.testing.assert_close(out["td_error"], errors.abs().mean())
    assert {"entropy", "action_gap", "soft_gap", "tau"} <= set(out.keys())
    (gradient,) = torch.autograd.grad(out["loss"], list(loss.parameters()))
    expected = torch.zeros(STATES, ACTIONS, dtype=torch.float64)
    where = (rows["observation"].argmax(-1), rows["action"])
    expected.index_put_(where, errors / errors.numel(), accumulate=True)
    torch.testing.assert_close(gradient, expected.T)


def test_rows_of_a_rollout_that_do_not_count(cases: Any, batch: Any) -> None:
    """Not even where their targets are NaN."""
    data = batch(6).set("value_target", torch.rand(6, 1))
    loss = cases["soft_dqn"].loss().make_value_estimator("regularized_qlambda", gamma=GAMMA, lmbda=LAMBDA)
    counts = torch.tensor([True, True, False, True, False, True])
    rows = data.select(*loss.in_keys).set(("collector", "mask"), counts.unsqueeze(-1))
    rows["value_target"][~counts] = torch.nan
    outs = [loss(each) for each in (rows, data.select(*loss.in_keys)[counts])]
    gradients = [torch.autograd.grad(out["loss"], list(loss.parameters())) for out in outs]
    torch.testing.assert_close(dict(outs[0].items()), dict(outs[1].items()))
    torch.testing.assert_close(*gradients)
    assert "td_error" not in rows  # there is no replay that would read priorities


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
@pytest.mark.parametrize("kind", ["td0", "tdlambda"])
def test_rewards_need_not_be_floats(cases: Any, batch: Any, kind: str, dtype: torch.dtype) -> None:
    options = {"lmbda": LAMBDA} if kind == "tdlambda" else {}
    loss = cases["m_dqn"].loss().double().make_value_estimator(kind, gamma=GAMMA, **options)
    data = sequence(batch)
    data["next", "reward"] = data["next", "reward"].round()
    if kind == "td0":
        data["steps_to_next_obs"] = torch.full_like(data["next", "reward"], 3)
    other = data.clone()
    other["next", "reward"] = other["next", "reward"].to(dtype)
    found, expected = (
        loss.value_estimator.value_estimate(each, target_params=loss.target_value_network_params)
        for each in (other, data)
    )
    assert torch.equal(found, expected) and found.dtype == torch.float64


def test_padding_changes_no_return_of_q_lambda(mdp: TabularMDP, q: Tensor) -> None:
    data = rollout(mdp, q, UNIFORM)
    data["next", "terminated"][0, 1] = data["next", "done"][0, 1] = True
    padded = tensordict.pad(data, [0, 0, 0, 2], value=0.0)
    padded["collector", "mask"] = torch.arange(padded.shape[1]).expand(padded.shape) < data.shape[1]
    padded["next", "reward"][:, data.shape[1] :] = torch.nan
    for options in ({}, {"correct": False, "time_limits_end": True}):
        found, expected = (targets(each, q, Entropy(0.5), 0.7, **options) for each in (padded, data))
        torch.testing.assert_close(found[:, : data.shape[1]], expected, rtol=0, atol=0)
        assert (found[:, data.shape[1] :] == 0).all()


def test_a_loss_owns_what_its_estimator_shares(cases: Any) -> None:
    loss = cases["soft_dqn"].loss()
    with pytest.raises(ValueError, match="alpha must be given to the loss.*got it for SoftTDLambdaEstimator"):
        loss.make_value_estimator("soft_tdlambda", gamma=GAMMA, alpha=0.9)
    plain = QLearningLoss(cases["soft_dqn"].actor(), delay_value=False)
    with pytest.raises(ValueError, match="regularizer, shaping must be given to the loss"):
        plain.make_value_estimator("regularized_td0", regularizer=Tsallis(0.5), shaping=AdvantageGap(0.5))
    with pytest.raises(ValueError, match="tau must be given to the loss"):
        value.SoftTD0Estimator.for_loss(loss, gamma=GAMMA, tau=5.0)
    own = value.SoftTD0Estimator(value_network=loss.value_network, gamma=GAMMA, tau=0.3)
    with pytest.raises(ValueError, match="the loss's own regularizer.*for_loss"):
        loss.make_value_estimator(own)
    assert loss.make_value_estimator(value.SoftTD0Estimator.for_loss(loss, gamma=GAMMA)) is loss


def test_an_estimator_by_itself_reads_the_action_space_of_its_network(cases: Any, batch: Any) -> None:
    data, found = batch(5), []
    for one_hot in (False, True):
        network = cases["m_dqn"].actor(one_hot=one_hot)
        estimator = value.MunchausenTD0Estimator(value_network=network, gamma=GAMMA, tau=TAU)
        action = data["action"]
        rows = data.clone().set("action", nn.functional.one_hot(action, 3) if one_hot else action)
        found.append(estimator(rows)["value_target"])
    assert torch.equal(*found)


def test_q_lambda_and_advantages_take_the_prior_of_the_state(cases: Any, batch: Any) -> None:
    loss = cases["mirl_network"].loss()
    regularizer, data = loss.regularizer, batch(2, 3)
    with torch.no_grad():
        q, next_q = (loss.value_network(rows.clone())["action_value"] for rows in (data, data["next"]))
        values, next_values = (
            regularizer(values, **regularizer.at_states(rows)).value
            for values, rows in ((q, data), (next_q, data["next"]))
        )
    step = data["next", "reward"].squeeze(-1) + GAMMA * next_values * ~data["next", "terminated"].squeeze(-1)
    loss.make_value_estimator("td0", gamma=GAMMA)
    params = loss.value_network_params
    found = loss.value_estimator(data.clone(), params=params, target_params=params)
    torch.testing.assert_close(found["advantage"].squeeze(-1), step - values)
    loss.make_value_estimator("regularized_qlambda", gamma=GAMMA, lmbda=0.0)
    rows = data.clone().set("action_value", q)
    rows["observation"][:, 1:] = rows["next", "observation"][:, :-1]  # successive steps
    rows["next", "done"][:] = rows["next", "terminated"][:]
    q = loss.value_network(rows.clone())["action_value"].detach()
    found = loss.value_estimator(rows.set("action_value", q), params=params)["value_target"]
    torch.testing.assert_close(found.squeeze(-1), step, rtol=1e-5, atol=1e-6)
