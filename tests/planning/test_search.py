"""The search: exact values, batches, chance nodes, cost, evaluation of leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from torchrl_reg.planning import (
    E2W,
    MENTS,
    PUCT,
    RENTS,
    TENTS,
    UCT,
    Evaluation,
    Planner,
    QEvaluation,
    RandomRollout,
    SearchResult,
    SyntheticTrees,
    TabularModel,
)
from torchrl_reg.planning.search import drawn
from torchrl_reg.regularizers import Entropy, HardMax, PriorKL, Tsallis
from torchrl_reg.tabular import TabularMDP, chain, random_mdp

REGULARIZERS = {
    "entropy": Entropy(0.5),
    "tsallis": Tsallis(0.5),
    "prior": PriorKL(0.5, prior=[0.6, 0.3, 0.1]),
    "hard": HardMax(),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def covered(planner: Any, **more: Any) -> tuple[SyntheticTrees, SearchResult]:
    """Trees of 13 nodes, and a search that tries every one of them."""
    trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=1)
    found = planner(num_simulations=150, gamma=0.9, **more)(trees, trees.roots(), generator=seeded())
    assert found.tree.num_nodes.tolist() == [13] * 4
    return trees, found


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_covered_tree_has_the_exact_values(name: str) -> None:
    """Nothing is noisy: the root's values are those of backward dynamic programming."""
    regularizer = REGULARIZERS[name]
    trees, found = covered(Planner, select=E2W(2.0), regularizer=regularizer)
    exact, value = trees.root_q(regularizer, gamma=0.9), trees.root_value(regularizer, gamma=0.9)
    torch.testing.assert_close((found.q, found.value), (exact, value), rtol=0, atol=1e-10)
    assert torch.equal(found.action, exact.argmax(-1))


def test_a_search_in_single_precision() -> None:
    trees, found = covered(MENTS, tau=0.5, epsilon=2.0, dtype=torch.float32)
    assert found.value.dtype == torch.float32
    assert (found.value - trees.root_value(Entropy(0.5), gamma=0.9)).abs().max() < 1e-5


def test_rents_is_the_fixed_point_with_the_parents_policy_as_prior() -> None:
    trees, tau, gamma = SyntheticTrees(branching=2, depth=3, num_trees=3, seed=3), 0.5, 0.9
    found = RENTS(tau=tau, epsilon=3.0, num_simulations=400, gamma=gamma)(trees, trees.roots(), generator=seeded())
    assert found.tree.num_nodes.tolist() == [15] * 3
    kl = PriorKL(tau)
    uniform = torch.full((3, 1, 2), 0.5, dtype=torch.float64)
    priors = [uniform, uniform.expand(3, 2, 2), uniform.expand(3, 4, 2)]
    for _ in range(200):  # down: values given the priors; up: the priors that these values give
        q, values, policies = trees.leaf_mean, [], []
        for level in (2, 1, 0):
            out = kl(q.view(3, 2**level, 2), log_prior=priors[level].log())
            values.append(out.value)
            policies.append(out.pi)
            q = gamma * out.value
        pi = policies[::-1]
        priors = [uniform, pi[0].expand(3, 2, 2), pi[1].repeat_interleave(2, 1)]
    assert (found.value - values[-1].squeeze(-1)).abs().max() < 1e-10
    assert (found.value - trees.root_value(kl, gamma)).abs().min() > 1e-3  # uniform priors


def test_rents_keeps_actions_whose_probability_at_the_parent_underflows() -> None:
    trees = SyntheticTrees(branching=3, depth=3, num_trees=4, seed=1)
    search = RENTS(tau=1e-4, epsilon=2.0, num_simulations=100, gamma=0.9)
    tree = search(trees, trees.roots(), generator=seeded()).tree
    assert (tree.pi[:, 0] == 0).any() and tree.value.isfinite().all() and tree.pi.isfinite().all()


def test_a_draw_at_the_very_end_is_the_last_action() -> None:
    pi = torch.tensor([[0.3, 0.3, 0.3999], [0.0, 0.5, 0.4999]])  # as rounding may leave them
    assert drawn(pi, torch.tensor([0.99995, 0.0])).tolist() == [2, 1]


PLANNERS = {
    "uct": UCT(num_simulations=30, gamma=0.9),
    "puct": PUCT(num_simulations=30, gamma=0.9),
    **{
        planner.__name__.lower(): planner(num_simulations=30, gamma=0.9, tau=0.5, epsilon=0.3)
        for planner in (MENTS, RENTS, TENTS)
    },
}


class TableModel(TabularModel):
    """Draws the i-th transition of tree b from ``table[b, i]``, independent of the other trees."""

    def __init__(self, *args: Any, table: Tensor, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table, self.count = table, torch.zeros(len(table), dtype=torch.long)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tree = state[:, 1]
        u = self.table[tree, self.count[tree]].unsqueeze(-1)
        self.count[tree] += 1
        successor = torch.searchsorted(self._cumulative[state[:, 0], action], u, right=True).squeeze(-1)
        reward, ended = self.mdp.r[state[:, 0], action], self.mdp.terminal[successor]
        return reward, torch.stack((successor, tree), -1), ended


@pytest.mark.parametrize("outcomes", [None, 2])
@pytest.mark.parametrize("name", PLANNERS)
def test_a_batch_is_as_many_single_searches(name: str, outcomes: int | None) -> None:
    uniform = torch.rand(3, 30, 30, generator=seeded(4), dtype=torch.float64)
    mdp = chain(5, gamma=0.9, slip=0.0 if outcomes is None else 0.3)
    roots = torch.tensor([0, 3, 1])
    assert TabularModel(mdp).stochastic == (outcomes is not None)  # else each node of a simulation costs a step

    def search(rows: list[int]) -> dict[str, Tensor]:
        model, state = TabularModel(mdp), roots[rows]
        if outcomes is not None:
            draws = torch.rand(3, 900, generator=seeded(5), dtype=torch.float64)
            model = TableModel(mdp, num_outcomes=outcomes, table=draws)
            state = torch.stack((state, torch.tensor(rows)), -1)
        tree = PLANNERS[name](model, state, uniform=uniform[rows]).tree
        return {field: x for field, x in vars(tree).items() if isinstance(x, Tensor)}

    together, alone = search([0, 1, 2]), [search([row]) for row in (0, 1, 2)]
    for field, rows in together.items():
        assert torch.equal(rows, torch.cat([each[field] for each in alone])), field
    assert not torch.equal(together["q"][0], together["q"][2])


# -- chance nodes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["entropy", "hard"])
def test_chance_nodes_come_to_the_exact_value(name: str) -> None:
    """Two steps of a stochastic MDP: the value converges to that of the plan that sees what happened."""
    mdp, regularizer = random_mdp(5, 2, gamma=0.9, seed=0, branching=2), REGULARIZERS[name]
    v = torch.zeros(5, dtype=torch.float64)
    for _ in range(2):
        v = regularizer(mdp.r + 0.9 * mdp.P @ v).value
    roots, generator = torch.arange(5).repeat_interleave(12), seeded()
    search = Planner(E2W(1.0), regularizer, num_simulations=300, gamma=0.9, max_depth=2)
    found = search(TabularModel(mdp, generator=generator), roots, generator=generator)
    error = found.value.view(5, 12).mean(-1) - v
    standard_error = found.value.view(5, 12).std(-1) / math.sqrt(12)
    assert (error.abs() < 5 * standard_error + 5e-3).all() and standard_error.max() < 0.03
    assert found.tree.num_nodes.max() == 1 + 4 + 16
    open_loop = UCT(num_simulations=100, max_depth=2)(TabularModel(mdp, num_outcomes=1, generator=generator), roots)
    assert open_loop.tree.num_nodes.max() == 1 + 2 + 4


def test_every_statistic_of_a_chance_tree_follows_from_its_children() -> None:
    mdp, generator = chain(4, gamma=0.9, slip=0.5, step_reward=-0.3), seeded(1)
    search = MENTS(tau=0.5, epsilon=0.5, num_simulations=200, gamma=0.9)
    tree = search(TabularModel(mdp, generator=generator), torch.tensor([1, 2]), generator=generator).tree
    ended = 0
    for b, n, a in (tree.visits > 0).nonzero().tolist():
        children = [c for c in tree.children[b, n, a].tolist() if c >= 0]
        assert len({tree.state[b, c].item() for c in children}) == len(children)
        passed, alive = tree.passed[b, children], tree.alive[b, children]
        ended += int((alive < passed).sum())
        assert passed.sum() == tree.visits[b, n, a]
        expected = tree.reward[b, n, a] + 0.9 * (alive * tree.value[b, children]).sum() / passed.sum()
        assert tree.q[b, n, a].item() == pytest.approx(expected.item(), abs=1e-12)
    inner, tried = tree.visits.sum(-1) > 0, tree.visits > 0
    soft = 0.5 * torch.logsumexp((tree.q / 0.5).masked_fill(~tried, -math.inf), -1)
    torch.testing.assert_close(tree.value[inner], soft[inner], rtol=0, atol=1e-10)
    assert ended > 5 and (tree.pi[inner][~tried[inner]] == 0).all()


def test_the_last_outcome_collects_the_rest_and_those_before_are_kept_apart() -> None:
    """Of three equally likely outcomes two slots hold the first alone and the other two together."""
    P = torch.zeros(4, 1, 4)
    P[:, 0, 1:] = 1 / 3
    model = TabularModel(TabularMDP(P, torch.ones(4, 1), 0.9), num_outcomes=2, generator=seeded())
    found = UCT(num_simulations=200, gamma=0.9, max_depth=2)(model, torch.tensor([0]))
    first, rest = found.tree.children[0, 0, 0].tolist()
    assert 45 < found.tree.passed[0, first] < 90 and found.tree.passed[0, rest] == 200 - found.tree.passed[0, first]


@pytest.mark.parametrize("make", [UCT, lambda **size: Planner(E2W(9.0), HardMax(), **size)])
def test_a_node_for_an_end_and_a_reward_has_the_value_of_both(make: Any) -> None:
    """A fair coin decides between a reward at the next step and an end: in open loop one node represents both."""
    P = chain(3, gamma=0.9).P.clone()
    P[0] = torch.tensor([0.0, 0.5, 0.5])
    P[1] = torch.tensor([0.0, 0.0, 1.0])
    mdp = TabularMDP(P, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), 0.9, torch.tensor([False, False, True]))
    model = TabularModel(mdp, num_outcomes=1, generator=seeded())
    found = make(num_simulations=200, gamma=0.5)(model, torch.tensor([0]), generator=seeded(1))
    assert found.value.item() == pytest.approx(0.25, abs=0.08)
    child = found.tree.children[0, 0, 0, 0]
    assert 0 < found.tree.alive[0, child] < found.tree.passed[0, child]


class DeadAtFirst:
    """An open loop in which the first two steps end the episode, and no other."""

    num_actions, stochastic, num_outcomes = 2, True, 1
    steps = 0

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.steps += 1
        return torch.zeros(1), state + 1, torch.tensor([self.steps <= 2])


def test_a_node_first_met_dead_is_evaluated_when_met_alive() -> None:
    """Its actions then have the values of the evaluation, not the 0 of unwritten memory."""
    q = torch.tensor([[5.0, 4.0]], dtype=torch.float64)
    tree = UCT(num_simulations=3, gamma=0.9)(
        DeadAtFirst(), torch.tensor([0]), evaluate=lambda state: Evaluation(torch.tensor([5.0]), q, q / 9)
    ).tree
    child = tree.children[0, 0, 0, 0]
    assert (tree.passed[0, child], tree.alive[0, child]) == (2, 1) and tree.num_nodes.tolist() == [3]
    assert torch.equal(tree.q[0, child], q[0]) and torch.equal(tree.prior[0, child], q[0] / 9)
    assert tree.value[0, child] == 5.0 and tree.q[0, 0, 0].item() == pytest.approx(0.45 * 5.0)


def test_a_mean_return_counts_the_visits_that_arrived_alive() -> None:
    """In open loop a node is also passed by episodes that have ended; its own evaluation counts once."""
    tree = UCT(num_simulations=12, gamma=0.9)(
        DeadAtFirst(), torch.tensor([0]), evaluate=lambda state: Evaluation(torch.full((len(state),), 5.0))
    ).tree
    alive, visits, returns = tree.alive[0], tree.visits[0].sum(-1), (tree.visits * tree.q)[0].sum(-1)
    assert ((alive > 1) & (alive < tree.passed[0])).any()
    expected = (5.0 + returns) / (1 + visits)
    expected[0] = returns[0] / 12
    torch.testing.assert_close(tree.value[0][alive > 0], expected[alive > 0])


class Rising(DeadAtFirst):
    """Ends at once, with rewards 1, 2, 3, ..."""

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.steps += 1
        return torch.tensor([float(self.steps)]), state + 1, torch.tensor([True])


def test_sampled_rewards_are_averaged() -> None:
    tree = Planner(E2W(9.0), HardMax(), num_simulations=6)(Rising(), torch.tensor([0]), generator=seeded()).tree
    visits = tree.visits[0, 0]
    assert (visits > 0).all() and (visits @ tree.reward[0, 0]).item() == pytest.approx(1 + 2 + 3 + 4 + 5 + 6)
    assert torch.equal(tree.q[0, 0], tree.reward[0, 0])


# -- evaluations and cost ---------------------------------------------------------------------------------------------


def test_the_evaluation_is_used() -> None:
    """Untried actions have its action values, E2W and the backup see them, and leaves its values."""
    mdp, tau, roots = random_mdp(6, 3, gamma=0.9, seed=1, deterministic=True), 0.5, torch.tensor([0, 4])
    q0 = torch.randn(6, 3, generator=seeded(), dtype=torch.float64)
    soft, search = Entropy(tau), MENTS(tau=tau, epsilon=0.1, num_simulations=1, gamma=0.9)
    v0 = soft(q0).value
    found = search(TabularModel(mdp), roots, evaluate=lambda state: Evaluation(v0[state], q0[state]))
    backed_up = mdp.r[roots] + 0.9 * v0[mdp.P[roots].argmax(-1)]
    expected = torch.where(found.visits > 0, backed_up, q0[roots])
    assert found.visits.sum(-1).tolist() == [1, 1]
    torch.testing.assert_close((found.q, found.value), (expected, soft(expected).value))
    assert (search(TabularModel(mdp), roots).q == -math.inf).sum() == 4


def test_puct_gives_untried_actions_the_values_of_the_evaluation() -> None:
    trees, q = SyntheticTrees(branching=3, depth=1, seed=0), torch.tensor([[0.1, 0.9, 0.3]])
    found = PUCT(num_simulations=1, c=0.0)(trees, trees.roots(), evaluate=lambda _: Evaluation(torch.zeros(1), q))
    assert found.visits.tolist() == [[0.0, 1.0, 0.0]]


class Counting(SyntheticTrees):
    steps = 0

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.steps += len(state)
        return super().step(state, action)


def test_cost_is_linear() -> None:
    """A deterministic model is stepped once for a new node, a stochastic one once for each level of a simulation."""
    for simulations in (20, 40):
        quiet, noisy = (Counting(branching=4, depth=6, num_trees=3, seed=0, noise=noise) for noise in (0.0, 0.1))
        found = UCT(num_simulations=simulations)(quiet, quiet.roots())
        assert quiet.steps == (found.tree.num_nodes - 1).sum() == 3 * simulations
        found = UCT(num_simulations=simulations)(noisy, noisy.roots())
        assert noisy.steps == found.tree.visits.sum()
        assert found.tree.visits[:, 0].sum(-1).tolist() == [simulations] * 3


def test_bytes_of_a_node() -> None:
    trees = SyntheticTrees(branching=5, depth=2, num_trees=2, seed=0)
    uct, ments = (p(num_simulations=9)(trees, trees.roots()).tree for p in (UCT, MENTS))
    assert (uct.bytes_per_node(), ments.bytes_per_node()) == (32 * 5 + 24 + 8, 40 * 5 + 24 + 8)
    total = sum(x.nbytes for x in vars(ments).values() if isinstance(x, Tensor))
    assert total == 2 * 10 * ments.bytes_per_node()


# -- values of leaves -----------------------------------------------------------------------------------------------


def test_a_rollout_is_the_discounted_return_until_the_end() -> None:
    P = torch.zeros(4, 1, 4)
    P[[0, 1, 2, 3], 0, [1, 2, 3, 3]] = 1.0
    mdp = TabularMDP(P, torch.tensor([[1.0], [2.0], [4.0], [8.0]]), 0.9, torch.tensor([False, False, False, True]))
    for max_steps, longest in ((9, 1 + 0.5 * 2 + 0.25 * 4), (2, 1 + 0.5 * 2)):
        found = RandomRollout(TabularModel(mdp), max_steps=max_steps, gamma=0.5)(torch.tensor([2, 0, 2, 1]))
        assert found.value.tolist() == [4.0, longest, 4.0, 2 + 0.5 * 4]


def test_a_network_values_leaves() -> None:
    network = torch.nn.Linear(3, 4).double()
    observation = torch.randn(5, 3, dtype=torch.float64)
    q = network(observation).detach()
    soft = QEvaluation(network, Entropy(0.5), observe=lambda state: observation[state])(torch.tensor([4, 1]))
    found = (soft.q, soft.value, soft.prior)
    expected = (q, 0.5 * torch.logsumexp(q / 0.5, -1), (q / 0.5).softmax(-1))
    torch.testing.assert_close(found, tuple(each[[4, 1]] for each in expected))
    hard = QEvaluation(network, HardMax(), prior_tau=0.3, use_q=False)(observation)
    assert hard.q is None
    torch.testing.assert_close((hard.value, hard.prior), (q.amax(-1), (q / 0.3).softmax(-1)))
