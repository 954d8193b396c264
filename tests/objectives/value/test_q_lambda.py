"""Q(lambda) targets of rollouts: what theory says of them, and a loss that reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tabular_cases import table
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_reg.objectives import AdvantageGap, Munchausen, QLearningLoss
from torchrl_reg.objectives.value import RegularizedQLambdaEstimator
from torchrl_reg.regularizers import Entropy, HardMax, Regularizer, Tsallis
from torchrl_reg.tabular import (
    TabularMDP,
    munchausen_value_iteration,
    soft_value_iteration,
    tsallis_value_iteration,
    value_iteration,
)

GAMMA, TAU, STATES, ACTIONS, STEPS, ENVS = 0.9, 0.4, 6, 3, 12, 40


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
        (Entropy(TAU), None, lambda mdp: soft_value_iteration(mdp, TAU)),
        (Tsallis(TAU), None, lambda mdp: tsallis_value_iteration(mdp, TAU)),  # also for actions off its support
        (Entropy(TAU), Munchausen(0.9, None), lambda mdp: munchausen_value_iteration(mdp, TAU, 0.9)),
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
    values, log_pi = TAU * (q / TAU).logsumexp(-1), TAU * (q / TAU).log_softmax(-1)

    def returns(entropy: float) -> Tensor:
        found = [reward[:, -1] + GAMMA * values[following[:, -1]]]
        for t in reversed(range(STEPS - 1)):
            s = following[:, t]
            later = found[0] - entropy * log_pi[s, data["action"][:, t + 1]]
            found.insert(0, reward[:, t] + GAMMA * ((1 - lmbda) * values[s] + lmbda * later))
        return torch.stack(found, 1)

    got = targets(data, q, Entropy(TAU), lmbda, correct=correct)
    torch.testing.assert_close(got, returns(1.0), rtol=0, atol=1e-12)
    assert (got - returns(0.0)).abs().max() > 1  # what dropping the term costs


def test_no_trace_and_a_full_one(mdp: TabularMDP, q: Tensor) -> None:
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
    found = targets(data, q, Entropy(TAU), 0.8)
    other = data.clone()
    other["next", "reward"][:, 5:] += 100.0
    other["action_value"][:, 5:] += 100.0
    torch.testing.assert_close(targets(other, q, Entropy(TAU), 0.8)[:, :5], found[:, :5], rtol=0, atol=0)
    reward = data["next", "reward"][:, 4, 0]
    value = Entropy(TAU)(q).value[2]
    torch.testing.assert_close(found[:20, 4], reward[:20])
    torch.testing.assert_close(found[20:, 4], reward[20:] + GAMMA * value)
    torch.testing.assert_close(targets(data, q, Entropy(TAU), 0.8, time_limits_end=True)[:, 4], reward)


def test_a_termination_that_is_not_called_done_ends_the_episode(mdp: TabularMDP, q: Tensor) -> None:
    data = rollout(mdp, q, UNIFORM)
    data["next", "terminated"][:20, 4] = True
    found = targets(data, q, Entropy(TAU), 0.8)
    data["next", "done"][:20, 4] = True
    torch.testing.assert_close(found, targets(data, q, Entropy(TAU), 0.8), rtol=0, atol=0)


@pytest.mark.parametrize("time_limits_end", [True, False])
def test_the_persistent_gap_of_an_episode_that_ends_is_that_at_s(
    mdp: TabularMDP, q: Tensor, time_limits_end: bool
) -> None:
    """At a time limit there is a next state, unless it is taken for an end; what was recorded there is another's."""
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
    how: dict[str, Any] = {"regularizer": Entropy(TAU), "delay_value": False, "loss_function": "half_l2"}
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
