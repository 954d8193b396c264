"""The sample-based agents: their differences, and their limits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import one_hot

from torchrl_reg.tabular import (
    METHODS,
    MIRL_WORLDS,
    TabularAgents,
    TabularMDP,
    episode_return,
    gridworld,
    mutual_information_iteration,
    policy_evaluation,
    random_mdp,
    soft_value_iteration,
    value_iteration,
)

MDP = random_mdp(4, 3, 0.8, seed=3, deterministic=True)
PRIOR, UNIFORM = torch.tensor([[0.7, 0.2, 0.1], [1 / 3] * 3], dtype=torch.float64)
close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-7)


def holding(methods: list[str], q: list, prior: torch.Tensor, **settings) -> TabularAgents:
    """Agents at a constant beta, all with the action values ``q [S, A]``."""
    agents = TabularAgents(methods, len(q), len(q[0]), gamma=0.9, beta_growth=0.0, **settings)
    values = torch.tensor(q, dtype=torch.float64).expand_as(agents.q)
    agents.load_state_dict(agents.state_dict() | {"q": values, "prior": prior})
    return agents


def sweep(agents: TabularAgents, mdp: TabularMDP, times: int) -> None:
    """Updates every agent with every state and action in turn; transitions must be deterministic."""
    n = len(agents.prior)
    for _ in range(times):
        for s in range(mdp.num_states):
            for a in range(mdp.num_actions):
                state, action = torch.full((n,), s), torch.full((n,), a)
                next_state = mdp.P[s, a].argmax().expand(n)
                agents.learn(state, action, mdp.r[s, a].expand(n), next_state, mdp.terminal[next_state])


# ------------------------------------------------------------------ one update


@pytest.mark.parametrize("method", METHODS)
def test_an_update_by_hand(method):
    agents = TabularAgents([method], 3, 2, gamma=0.9, q_rate=0.25, prior_rate=0.1, beta_0=0.5, beta_growth=0.75)
    q = torch.tensor([[[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]]], dtype=torch.float64)
    learns_prior = method in ("sql_m", "mirl")
    prior = torch.tensor([[0.8, 0.2] if learns_prior else [0.5, 0.5]], dtype=torch.float64)
    agents.load_state_dict(agents.state_dict() | {"q": q, "prior": prior, "updates": 3})
    beta = 0.5 + 0.75 * 4
    first, second, reward = torch.tensor([0]), torch.tensor([1]), torch.tensor([3.0])
    agents.learn(first, second, reward, second, torch.tensor([False]))
    weight = (0.8, 0.2) if method == "mirl" else (0.5, 0.5)
    soft = math.log(weight[0] * math.exp(beta * 0.5) + weight[1] * math.exp(-beta)) / beta
    v = 0.5 if method == "ql" else soft
    expected = torch.tensor([[[1.0, 0.75 * 2 + 0.25 * (3 + 0.9 * v)], [0.5, -1.0], [0.0, 0.0]]], dtype=torch.float64)
    close(agents.q, expected, atol=1e-12)
    # The prior moves towards the whole policy of state 0, with the action values before the update.
    pi = 0.8 * math.exp(beta), 0.2 * math.exp(2 * beta)
    moved = [0.9 * 0.8 + 0.1 * pi[0] / sum(pi), 0.18 + 0.1 * pi[1] / sum(pi)] if learns_prior else [0.5, 0.5]
    assert agents.prior[0].tolist() == pytest.approx(moved)
    agents.learn(first, first, reward, second, torch.tensor([True]))
    assert agents.q[0, 0, 0].item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert agents.updates == 5


def test_acting_is_greedy_in_the_policy_prior_included():
    prior = torch.stack([UNIFORM, UNIFORM, PRIOR, PRIOR])
    agents = holding(["ql", "sql", "sql_m", "mirl"], [[0.0, 1.0, 0.5]], prior, beta_0=1.0, epsilon=0.0)
    state = torch.zeros(4, dtype=torch.int64)
    # ln(.7) > ln(.2) + 1: the prior outweighs the better action value.
    assert agents.act(state).tolist() == [1, 1, 0, 0]
    assert agents.greedy_actions().tolist() == [[1], [1], [0], [0]]
    pi = (prior.log() + agents.q[:, 0]).softmax(-1)
    pi[0] = torch.tensor([0.0, 1.0, 0.0])
    close(agents.policy(state), pi, atol=1e-12)


def test_exploration_draws_from_the_prior_and_ties_are_drawn():
    n, epsilon = 20_000, 0.3
    prior = torch.stack([UNIFORM, PRIOR]).repeat_interleave(n, 0)
    cases = (([0, 0, 9], [0, 0, 1], [0, 0, 1]), ([0, 9, 9], [0, 0.5, 0.5], [0, 1, 0]))  # the prior decides MIRL's tie
    for q, sql, mirl in cases:
        agents = holding(["sql"] * n + ["mirl"] * n, [q], prior, beta_0=1.0, epsilon=epsilon)
        taken = one_hot(agents.act(torch.zeros(2 * n, dtype=torch.int64)), 3).double()
        expected = (1 - epsilon) * torch.tensor([sql, mirl]) + epsilon * torch.stack([UNIFORM, PRIOR])
        close(torch.stack([taken[:n].mean(0), taken[n:].mean(0)]), expected, atol=0.015)


def test_settings_per_agent_and_a_saved_state():
    def make():
        rates = torch.tensor([0.1, 0.9])
        return TabularAgents(["mirl", "mirl"], 4, 3, gamma=0.8, q_rate=rates, epsilon=0.5, seed=1)

    def walk(agents, steps, state):
        for _ in range(steps):
            action = agents.act(state)
            following = MDP.P[state, action].argmax(-1)
            agents.learn(state, action, MDP.r[state, action], following, torch.tensor([False, False]))
            state = following
        return state

    one, two = make(), make()
    middle = walk(one, 50, torch.tensor([0, 0]))
    saved = one.state_dict()
    end = walk(one, 50, middle)  # which leaves what was saved alone
    two.load_state_dict(saved)
    assert torch.equal(end, walk(two, 50, middle))
    assert torch.equal(one.q, two.q) and torch.equal(one.prior, two.prior) and one.updates == two.updates == 100
    assert not torch.allclose(one.q[0], one.q[1])


# ------------------------------------------------------------------ where they converge


def test_q_learning_converges_to_value_iteration():
    for mdp, rate, times in ((MDP, 0.5, 200), (gridworld(["..G", ".#."], 0.8), 1.0, 10)):
        agents = TabularAgents(["ql"], mdp.num_states, mdp.num_actions, gamma=0.8, q_rate=rate)
        sweep(agents, mdp, times)
        close(agents.q[0][~mdp.terminal], value_iteration(mdp).q[~mdp.terminal])


def test_sql_converges_to_the_soft_fixed_point_of_a_uniform_prior():
    agents = TabularAgents(["sql", "sql_m"], 4, 3, gamma=0.8, q_rate=0.5, beta_growth=0.0, beta_0=3.0)
    sweep(agents, MDP, 200)
    held = soft_value_iteration(MDP, 1 / 3.0, prior=UNIFORM)
    close(agents.q, held.q.expand(2, 4, 3))
    close(agents.policy(torch.tensor([2, 2]))[0], held.pi[2])


def test_mirl_on_its_own_policy_finds_the_stationary_solution():
    # In states visited by pi itself; the published behaviour, argmax pi, visits others.
    torch.manual_seed(0)
    beta, seeds, steps = 3.0, 100, 3_000
    mdp = random_mdp(4, 3, 0.8, seed=5, branching=2)  # its likeliest transitions
    deterministic = TabularMDP(one_hot(mdp.P.argmax(-1), 4), mdp.r, 0.8)
    agents = TabularAgents(["mirl"] * seeds, 4, 3, gamma=0.8, q_rate=0.3, prior_rate=0.01, beta_growth=0.0, beta_0=beta)
    state = torch.arange(seeds) % 4
    tail = torch.zeros(3, dtype=torch.float64)
    never = torch.zeros(seeds, dtype=torch.bool)
    for step in range(steps):
        action = torch.multinomial(agents.policy(state), 1).squeeze(-1)
        following = deterministic.P[state, action].argmax(-1)
        agents.learn(state, action, deterministic.r[state, action], following, never)
        state = following
        tail += agents.prior.mean(0) / 1_000 if step >= steps - 1_000 else 0.0
    exact = mutual_information_iteration(deterministic, beta, occupancy="stationary")
    close(tail, exact.prior, atol=0.02)
    uniform = soft_value_iteration(deterministic, 1 / beta, prior=UNIFORM)
    assert (exact.prior - 1 / 3).abs().max() > 0.2 and (uniform.pi.mean(0) - exact.prior).abs().max() > 0.05


# ------------------------------------------------------------------ numbers that are large, and input that is bad


def test_nothing_overflows_and_no_action_is_lost_for_good():
    q = [[1e6, -1e6, 0.0], [-1e6, -1e6, 1e6]]
    agents = holding(["mirl", "sql_m"], q, UNIFORM.expand(2, 3), q_rate=1.0, prior_rate=1.0, beta_0=1e3)
    state, other = torch.tensor([0, 0]), torch.tensor([1, 1])
    reward, never = torch.tensor([1.0, 1.0]), torch.tensor([False, False])
    agents.learn(state, other, reward, other, never)
    close(agents.q[:, 0, 1], torch.tensor([1 + 0.9e6] * 2).double(), atol=1e-2)
    assert agents.prior.tolist() == [[1.0, 0.0, 0.0]] * 2  # underflows, and yet
    assert agents.policy(other).argmax(-1).tolist() == [2, 2]
    agents.learn(other, state, reward, state, never)
    assert agents.q.isfinite().all() and agents.prior.argmax(-1).tolist() == [2, 2]


BAD = [
    ({"methods": ["mirl", "sarsa"]}, "methods must be among ql, sql, sql_m, mirl, got 'sarsa'"),
    ({"methods": []}, "methods must name at least one agent"),
    ({"gamma": 1.5}, r"gamma must be in \[0, 1\], got 1.5"),
    ({"q_rate": 0.0}, r"q_rate must be in \(0, 1\]"),
    ({"q_rate": torch.tensor([0.5, 1.5])}, r"q_rate must be in \(0, 1\], got \[0.5, 1.5\]"),
    ({"q_rate": torch.ones(3)}, r"q_rate must be a number or have shape \[2\], got \[3\]"),
    ({"prior_rate": -0.1}, r"prior_rate must be in \(0, 1\]"),
    ({"prior_rate": math.nan}, r"prior_rate must be in \(0, 1\]"),
    ({"epsilon": 1.1}, r"epsilon must be in \[0, 1\]"),
    ({"beta_0": -1.0}, "beta_0 must be finite and >= 0"),
    ({"beta_growth": math.inf}, "beta_growth must be finite and >= 0"),
    ({"beta_growth": 0.0}, "beta must be > 0"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_settings_end_in_one_sentence(settings, sentence):
    arguments = {"methods": ["ql", "mirl"], "num_states": 2, "num_actions": 2, "gamma": 0.9} | settings
    with pytest.raises(ValueError, match=sentence) as error:
        TabularAgents(**arguments)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ the return of a policy


def test_episode_return():
    right, left = torch.ones(4, dtype=torch.int64), torch.full((4,), 3)
    corridor = gridworld(["...G"], 0.9)
    assert episode_return(corridor, torch.stack([right, left]), 10).tolist() == pytest.approx([(7 + 8 + 9) / 3, -10.0])
    assert episode_return(corridor, right.unsqueeze(0), 2, start=torch.eye(4)[0]).tolist() == [-2.0]
    slippery = gridworld(["...G"], 0.999999, slip=0.5)
    exact = policy_evaluation(slippery, one_hot(right, 4)).v @ slippery.start_distribution()
    assert episode_return(slippery, right.unsqueeze(0), 3_000).item() == pytest.approx(exact.item(), abs=1e-3)


@pytest.mark.parametrize(
    ("world", "distances"),
    [
        ("corridor", [19 - column for column in range(19)]),
        ("square", [14 - row - column for row in range(8) for column in range(8) if (row, column) != (7, 7)]),
    ],
)
def test_the_optimal_return_is_ten_less_the_distance(world, distances):
    mdp = gridworld(MIRL_WORLDS[world], 0.99)
    best = episode_return(mdp, value_iteration(mdp).q.argmax(-1).unsqueeze(0), 200)
    assert best.item() == pytest.approx(10 - sum(distances) / len(distances), abs=1e-9)
