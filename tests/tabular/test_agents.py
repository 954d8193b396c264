"""The sample-based agents: what tells them apart, and where they converge."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest
import torch

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
NEXT = MDP.P.argmax(-1)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=0.0, atol=atol)


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
    q = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.0, 0.0]], dtype=torch.float64)
    prior = torch.tensor([0.8, 0.2] if METHODS[method].prior_in_behaviour else [0.5, 0.5], dtype=torch.float64)
    state = agents.state_dict() | {"q": q.unsqueeze(0), "prior": prior.unsqueeze(0), "updates": 3}
    agents.load_state_dict(state)
    beta = 0.5 + 0.75 * 4
    agents.learn(torch.tensor([0]), torch.tensor([1]), torch.tensor([3.0]), torch.tensor([1]), torch.tensor([False]))
    weight = {"mirl": (0.8, 0.2)}.get(method, (0.5, 0.5))
    v = math.log(weight[0] * math.exp(beta * 0.5) + weight[1] * math.exp(-beta)) / beta
    v = 0.5 if method == "ql" else v
    assert agents.q[0, 0, 1].item() == pytest.approx(0.75 * 2 + 0.25 * (3 + 0.9 * v))
    assert agents.q[0, 0, 0] == 1 and torch.equal(agents.q[0, 1:], q[1:])
    if method in ("ql", "sql"):
        assert agents.prior.tolist() == [[0.5, 0.5]]
    else:  # towards the whole policy of state 0, with the action values before the update
        pi = 0.8 * math.exp(beta), 0.2 * math.exp(2 * beta)
        assert agents.prior[0].tolist() == pytest.approx(
            [0.9 * 0.8 + 0.1 * pi[0] / sum(pi), 0.18 + 0.1 * pi[1] / sum(pi)]
        )
    agents.learn(torch.tensor([0]), torch.tensor([0]), torch.tensor([3.0]), torch.tensor([1]), torch.tensor([True]))
    assert agents.q[0, 0, 0].item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert agents.updates == 5


def test_the_methods_differ_in_exactly_what_the_slides_say():
    assert {name: astuple(method) for name, method in METHODS.items()} == {
        "ql": (False, False, False),
        "sql": (True, False, False),
        "sql_m": (True, False, True),
        "mirl": (True, True, True),
    }


def test_without_exploration_sql_and_sql_m_differ_in_behaviour_alone():
    agents = TabularAgents(["sql", "sql_m", "mirl"], 4, 3, gamma=0.8, beta_growth=0.0, beta_0=2.0, prior_rate=0.2)
    state = torch.zeros(3, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):  # the same transitions for all
        action = torch.randint(3, (1,), generator=generator).expand(3)
        next_state = NEXT[state, action]
        agents.learn(state, action, MDP.r[state, action], next_state, torch.zeros(3, dtype=torch.bool))
        state = next_state
    assert torch.equal(agents.q[0], agents.q[1]) and not torch.allclose(agents.q[1], agents.q[2], atol=1e-3)
    assert torch.equal(agents.prior[0], torch.full((3,), 1 / 3, dtype=torch.float64))
    assert (agents.prior[1] - 1 / 3).abs().max() > 0.05


def test_acting_is_greedy_in_the_policy_prior_included():
    agents = TabularAgents(["ql", "sql", "sql_m", "mirl"], 1, 3, gamma=0.9, beta_growth=0.0, beta_0=1.0, epsilon=0.0)
    prior = torch.tensor([[1 / 3] * 3] * 2 + [[0.7, 0.2, 0.1]] * 2, dtype=torch.float64)
    q = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64).expand(4, 1, 3)
    agents.load_state_dict(agents.state_dict() | {"q": q, "prior": prior})
    state = torch.zeros(4, dtype=torch.int64)
    # ln(.7) > ln(.2) + 1: the prior outweighs the better action value.
    assert agents.act(state).tolist() == [1, 1, 0, 0]
    assert agents.greedy_actions().tolist() == [[1], [1], [0], [0]]
    assert agents.policy(state)[0].tolist() == [0.0, 1.0, 0.0]
    close(agents.policy(state)[3], torch.softmax(prior[3].log() + q[3, 0], -1), 1e-12)
    uniform = torch.softmax(q[1, 0], -1)
    close(agents.policy(state)[1], uniform, 1e-12)


@pytest.mark.parametrize("epsilon", [1.0, 0.3])
def test_exploration_draws_from_the_prior(epsilon):
    n = 20_000
    agents = TabularAgents(["sql"] * n + ["mirl"] * n, 1, 3, gamma=0.9, epsilon=epsilon, beta_growth=0.0, beta_0=1.0)
    prior = torch.tensor([[1 / 3] * 3] * n + [[0.7, 0.2, 0.1]] * n, dtype=torch.float64)
    q = torch.tensor([0.0, 0.0, 9.0], dtype=torch.float64).expand(2 * n, 1, 3)
    agents.load_state_dict(agents.state_dict() | {"q": q, "prior": prior})
    taken = torch.nn.functional.one_hot(agents.act(torch.zeros(2 * n, dtype=torch.int64)), 3).double()
    best = (1 - epsilon) * torch.tensor([0.0, 0.0, 1.0])
    close(taken[:n].mean(0), best.double() + epsilon / 3, 0.015)
    close(taken[n:].mean(0), best.double() + epsilon * prior[-1], 0.015)


def test_ties_are_drawn():
    agents = TabularAgents(["ql", "mirl"] * 5_000, 1, 4, gamma=0.9, epsilon=0.0)
    taken = torch.nn.functional.one_hot(agents.act(torch.zeros(10_000, dtype=torch.int64)), 4).double()
    close(taken.mean(0), torch.full((4,), 0.25).double(), 0.02)


def test_settings_per_agent_and_a_saved_state():
    def make():
        rates = torch.tensor([0.1, 0.9])
        return TabularAgents(["mirl", "mirl"], 4, 3, gamma=0.8, q_rate=rates, epsilon=0.5, seed=1)

    def walk(agents, steps, state):
        for _ in range(steps):
            action = agents.act(state)
            following = NEXT[state, action]
            agents.learn(state, action, MDP.r[state, action], following, torch.tensor([False, False]))
            state = following
        return state

    one, two, start = make(), make(), torch.tensor([0, 0])
    middle = walk(one, 50, start)
    saved = one.state_dict()
    end = walk(one, 50, middle)  # which leaves what was saved alone
    two.load_state_dict(saved)
    assert torch.equal(end, walk(two, 50, middle))
    assert torch.equal(one.q, two.q) and torch.equal(one.prior, two.prior) and one.updates == two.updates == 100
    assert not torch.allclose(one.q[0], one.q[1])


# ------------------------------------------------------------------ where they converge


def test_q_learning_converges_to_value_iteration():
    agents = TabularAgents(["ql"], 4, 3, gamma=0.8, q_rate=0.5)
    sweep(agents, MDP, 200)
    close(agents.q[0], value_iteration(MDP).q, 1e-7)
    ending = gridworld(["..G", ".#."], 0.8)
    agents = TabularAgents(["ql"], ending.num_states, 4, gamma=0.8, q_rate=1.0)
    sweep(agents, ending, 10)
    living = ~ending.terminal
    close(agents.q[0][living], value_iteration(ending).q[living], 1e-9)


def test_sql_converges_to_the_soft_fixed_point_of_a_uniform_prior():
    agents = TabularAgents(["sql", "sql_m"], 4, 3, gamma=0.8, q_rate=0.5, beta_growth=0.0, beta_0=3.0)
    sweep(agents, MDP, 200)
    held = soft_value_iteration(MDP, 1 / 3.0, prior=torch.ones(3) / 3)
    close(agents.q, held.q, 1e-7)
    close(agents.policy(torch.tensor([2, 2]))[0], held.pi[2], 1e-7)


def test_sql_with_growing_beta_tends_to_value_iteration():
    agents = TabularAgents(["sql", "mirl"], 4, 3, gamma=0.8, q_rate=0.5, beta_growth=1.0, prior_rate=1e-3)
    sweep(agents, MDP, 400)
    close(agents.q, value_iteration(MDP).q, 5e-3)


def test_mirl_on_its_own_policy_finds_the_stationary_solution():
    # In states visited by pi itself; the published behaviour, argmax pi, visits others.
    torch.manual_seed(0)
    beta, seeds, steps = 3.0, 100, 3_000
    mdp = random_mdp(4, 3, 0.8, seed=5, branching=2)  # its likeliest transitions
    deterministic = TabularMDP(torch.nn.functional.one_hot(mdp.P.argmax(-1), 4), mdp.r, 0.8)
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
    close(tail, exact.prior, 0.02)
    uniform = soft_value_iteration(deterministic, 1 / beta, prior=torch.ones(3) / 3)
    assert (exact.prior - 1 / 3).abs().max() > 0.2 and (uniform.pi.mean(0) - exact.prior).abs().max() > 0.05


# ------------------------------------------------------------------ numbers that are large, and input that is bad


def test_nothing_overflows_and_no_action_is_lost_for_good():
    agents = TabularAgents(["mirl", "sql_m"], 2, 3, gamma=0.9, q_rate=1.0, prior_rate=1.0, beta_growth=0.0, beta_0=1e3)
    q = torch.tensor([[1e6, -1e6, 0.0], [-1e6, -1e6, 1e6]], dtype=torch.float64).expand(2, 2, 3)
    agents.load_state_dict(agents.state_dict() | {"q": q})
    state, other = torch.tensor([0, 0]), torch.tensor([1, 1])
    agents.learn(state, torch.tensor([1, 1]), torch.tensor([1.0, 1.0]), other, torch.tensor([False, False]))
    close(agents.q[:, 0, 1], torch.tensor(1 + 0.9e6).double(), 1e-2)
    assert agents.prior.tolist() == [[1.0, 0.0, 0.0]] * 2  # underflows, and yet
    assert agents.policy(other).argmax(-1).tolist() == [2, 2]
    agents.learn(other, state, torch.tensor([1.0, 1.0]), state, torch.tensor([False, False]))
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
    mdp = gridworld(["...G"], 0.9)
    right, left = torch.ones(4, dtype=torch.int64), torch.full((4,), 3)
    returns = episode_return(mdp, torch.stack([right, left]), 10)
    assert returns.tolist() == pytest.approx([(7 + 8 + 9) / 3, -10.0])
    first = torch.eye(4)[0]
    assert episode_return(mdp, right.unsqueeze(0), 2, start=first).tolist() == [-2.0]
    slippery = gridworld(["...G"], 0.999999, slip=0.5)
    exact = policy_evaluation(slippery, torch.nn.functional.one_hot(right, 4)).v @ slippery.start_distribution()
    assert episode_return(slippery, right.unsqueeze(0), 3_000).item() == pytest.approx(exact.item(), abs=1e-3)


def test_the_optimal_returns_of_the_worlds():
    # By hand: 10 - distance, on average over the free cells.
    distances = {
        "corridor": [abs(19 - c) for c in range(19)],
        "square": [14 - r - c for r in range(8) for c in range(8) if (r, c) != (7, 7)],
    }
    for world, found in distances.items():
        mdp = gridworld(MIRL_WORLDS[world], 0.99)
        best = episode_return(mdp, value_iteration(mdp).q.argmax(-1).unsqueeze(0), 200)
        assert best.item() == pytest.approx(10 - sum(found) / len(found), abs=1e-9)
