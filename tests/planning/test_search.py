"""The search itself: exact values, the scalar reference, batches, chance nodes, cost."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

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
    SyntheticTrees,
    TabularModel,
)
from torchrl_reg.planning.selection import drawn
from torchrl_reg.regularizers import Entropy, HardMax, PriorKL, Tsallis
from torchrl_reg.tabular import TabularMDP, chain, gridworld, random_mdp

spec = importlib.util.spec_from_file_location("planning_reference", Path(__file__).parent / "reference.py")
assert spec is not None and spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

REGULARIZERS = {
    "entropy": Entropy(0.5),
    "tsallis": Tsallis(0.5),
    "prior": PriorKL(0.5, prior=[0.6, 0.3, 0.1]),
    "hard": HardMax(),
}


@pytest.mark.parametrize("name", REGULARIZERS)
def test_a_covered_tree_has_the_exact_values(name: str) -> None:
    """Every node was tried, nothing is noisy: the root's values are those of backward dynamic programming."""
    trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=1)
    search = Planner(E2W(2.0), REGULARIZERS[name], num_simulations=150, gamma=0.9)
    found = search(trees, trees.roots(), generator=torch.Generator().manual_seed(0))
    assert found.tree.num_nodes.tolist() == [13] * 4
    exact = trees.root_q(REGULARIZERS[name], gamma=0.9)
    assert (found.q - exact).abs().max() < 1e-10
    assert (found.value - trees.root_value(REGULARIZERS[name], gamma=0.9)).abs().max() < 1e-10
    assert torch.equal(found.action, exact.argmax(-1))


def test_rents_is_the_fixed_point_with_the_parents_policy_as_prior() -> None:
    trees, tau, gamma = SyntheticTrees(branching=2, depth=3, num_trees=3, seed=3), 0.5, 0.9
    search = RENTS(tau=tau, epsilon=3.0, num_simulations=500, gamma=gamma)
    found = search(trees, trees.roots(), generator=torch.Generator().manual_seed(0))
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
    with_uniform_priors = trees.root_value(kl, gamma)
    assert (found.value - with_uniform_priors).abs().min() > 1e-3


def test_rents_keeps_actions_whose_probability_at_the_parent_underflows() -> None:
    trees = SyntheticTrees(branching=3, depth=3, num_trees=4, seed=1)
    search = RENTS(tau=1e-4, epsilon=2.0, num_simulations=100, gamma=0.9)
    tree = search(trees, trees.roots(), generator=torch.Generator().manual_seed(0)).tree
    assert (tree.pi[:, 0] == 0).any() and tree.value.isfinite().all() and tree.pi.isfinite().all()


def test_a_draw_at_the_very_end_is_the_last_action() -> None:
    pi = torch.tensor([[0.3, 0.3, 0.3999], [0.0, 0.5, 0.4999]])  # as rounding may leave them
    assert drawn(pi, torch.tensor([0.99995, 0.0])).tolist() == [2, 1]


def test_a_vanishing_temperature_is_the_maximum() -> None:
    trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=1)
    hard = trees.root_value(HardMax(), gamma=0.9)
    for planner in (MENTS, TENTS):
        search = planner(tau=1e-9, epsilon=2.0, num_simulations=150, gamma=0.9)
        found = search(trees, trees.roots(), generator=torch.Generator().manual_seed(0))
        assert (found.value - hard).abs().max() < 1e-8
        assert (found.pi.amax(-1) == 1).all()


def leaf_value(state: float) -> float:
    return math.sin(3.0 * state)


MODELS = {
    "tree": (SyntheticTrees(branching=3, depth=4, num_trees=1, seed=5), [0]),
    "gridworld": (TabularModel(gridworld(["..#.", "....", ".#.G"], gamma=0.5)), [0, 4, 9]),
    "garnet": (TabularModel(random_mdp(12, 4, gamma=0.9, seed=2, deterministic=True)), [3, 7]),
}


@pytest.mark.parametrize("name", MODELS)
def test_uct_is_the_scalar_reference_node_by_node(name: str) -> None:
    model, roots = MODELS[name]
    found = UCT(num_simulations=120, c=0.7, gamma=0.9)(
        model, torch.tensor(roots), evaluate=lambda s: Evaluation(torch.sin(3.0 * s.double()))
    )
    for index, root in enumerate(roots):
        expected = reference.ScalarUCT(model, root, simulations=120, c=0.7, gamma=0.9, value=leaf_value)
        assert int(found.tree.num_nodes[index]) == len(expected.nodes)
        for number, node in expected.nodes.items():
            assert found.tree.state[index, number].item() == node["state"]
            assert found.tree.visits[index, number].tolist() == node["n"]
            children = [-1 if child is None else child for child in node["child"]]
            assert found.tree.children[index, number, :, 0].tolist() == children
            for action, n in enumerate(node["n"]):
                if n:
                    mean = node["total"][action] / n
                    assert found.tree.q[index, number, action].item() == pytest.approx(mean, abs=1e-12)
        assert found.action[index] == max(range(model.num_actions), key=expected.nodes[0]["n"].__getitem__)


PLANNERS = {
    "uct": UCT(num_simulations=30, gamma=0.9),
    "puct": PUCT(num_simulations=30, gamma=0.9),
    "ments": MENTS(num_simulations=30, gamma=0.9, tau=0.5, epsilon=0.3),
    "rents": RENTS(num_simulations=30, gamma=0.9, tau=0.5, epsilon=0.3),
    "tents": TENTS(num_simulations=30, gamma=0.9, tau=0.5, epsilon=0.3),
}


class TableModel(TabularModel):
    """Draws the i-th transition of tree b from ``table[b, i]``, whoever else is searched beside it."""

    def __init__(self, *args: object, table: Tensor, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
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
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(3, 30, 30, generator=generator, dtype=torch.float64)
    mdp = chain(5, gamma=0.9, slip=0.0 if outcomes is None else 0.3)
    roots = torch.tensor([0, 3, 1])

    def search(rows: list[int]) -> list[dict]:
        model: TabularModel = TabularModel(mdp)
        state = roots[rows]
        if outcomes is not None:
            draws = torch.rand(3, 900, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            model = TableModel(mdp, num_outcomes=outcomes, table=draws)
            state = torch.stack((state, torch.tensor(rows)), -1)
        found = PLANNERS[name](model, state, uniform=uniform[rows])
        return [reference.as_json(found.tree, index) for index in range(len(rows))]

    together = search([0, 1, 2])
    assert together == [search([row])[0] for row in (0, 1, 2)]
    assert together[0] != together[2]


@pytest.mark.parametrize("name", ["entropy", "hard"])
def test_chance_nodes_come_to_the_exact_value(name: str) -> None:
    """Two steps of a stochastic MDP: the value converges to that of the plan that sees what happened."""
    mdp, regularizer = random_mdp(5, 2, gamma=0.9, seed=0, branching=2), REGULARIZERS[name]
    v = torch.zeros(5, dtype=torch.float64)
    for _ in range(2):
        v = regularizer(mdp.r + 0.9 * mdp.P @ v).value
    roots = torch.arange(5).repeat_interleave(12)
    generator = torch.Generator().manual_seed(0)
    search = Planner(E2W(1.0), regularizer, num_simulations=300, gamma=0.9, max_depth=2)
    found = search(TabularModel(mdp, generator=generator), roots, generator=generator)
    error = found.value.view(5, 12).mean(-1) - v
    standard_error = found.value.view(5, 12).std(-1) / math.sqrt(12)
    assert (error.abs() < 5 * standard_error + 5e-3).all() and standard_error.max() < 0.03
    assert found.tree.num_nodes.max() == 1 + 4 + 16
    open_loop = search(TabularModel(mdp, num_outcomes=1, generator=generator), roots, generator=generator)
    assert open_loop.tree.num_nodes.max() == 1 + 2 + 4


def test_every_statistic_of_a_chance_tree_follows_from_its_children() -> None:
    mdp = chain(4, gamma=0.9, slip=0.5, step_reward=-0.3)
    generator = torch.Generator().manual_seed(1)
    search = MENTS(tau=0.5, epsilon=0.5, num_simulations=200, gamma=0.9)
    found = search(TabularModel(mdp, generator=generator), torch.tensor([1, 2]), generator=generator)
    tree = found.tree
    ended = 0
    for b, n in (tree.visits.sum(-1) > 0).nonzero().tolist():
        tried = tree.visits[b, n] > 0
        for a in tried.nonzero().flatten().tolist():
            children = [c for c in tree.children[b, n, a].tolist() if c >= 0]
            assert len({tree.state[b, c].item() for c in children}) == len(children)
            passed, alive = tree.passed[b, children], tree.alive[b, children]
            ended += int((alive < passed).sum())
            assert passed.sum() == tree.visits[b, n, a]
            expected = tree.reward[b, n, a] + 0.9 * (alive * tree.value[b, children]).sum() / passed.sum()
            assert tree.q[b, n, a].item() == pytest.approx(expected.item(), abs=1e-12)
        q = tree.q[b, n][tried]
        assert tree.value[b, n].item() == pytest.approx(0.5 * torch.logsumexp(q / 0.5, 0).item(), abs=1e-10)
        assert (tree.pi[b, n][~tried] == 0).all()
    assert ended > 5


def test_the_last_outcome_collects_the_rest() -> None:
    """A fair coin decides between a reward now and an end: in open loop one node stands for both."""
    mdp = chain(3, gamma=0.9, slip=0.0)
    P, r = mdp.P.clone(), torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    P[0] = torch.tensor([0.0, 0.5, 0.5])
    P[1] = torch.tensor([0.0, 0.0, 1.0])
    model = TabularModel(type(mdp)(P, r, 0.9, mdp.terminal), num_outcomes=1)
    for planner in (UCT(num_simulations=200, gamma=0.5), Planner(E2W(9.0), HardMax(), num_simulations=200, gamma=0.5)):
        torch.manual_seed(0)
        found = planner(model, torch.tensor([0]))
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
    """Its actions have the evaluation's values then, and not the 0 of memory that nobody wrote."""
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
    alive, visits = tree.alive[0], tree.visits[0].sum(-1)
    assert (alive < tree.passed[0]).any() and ((alive > 1) & (alive < tree.passed[0])).any()
    expected = (5.0 + (tree.visits * tree.q)[0].sum(-1)) / (1 + visits)
    torch.testing.assert_close(tree.value[0, 1:][alive[1:] > 0], expected[1:][alive[1:] > 0])
    assert tree.value[0, 0].item() == pytest.approx((tree.visits * tree.q)[0, 0].sum().item() / 12)


def test_the_outcomes_before_the_last_are_kept_apart() -> None:
    """Of three equally likely outcomes two slots hold the first alone and the other two together."""
    P = torch.zeros(4, 1, 4)
    P[:, 0, 1:] = 1 / 3
    model = TabularModel(TabularMDP(P, torch.ones(4, 1), 0.9), num_outcomes=2)
    torch.manual_seed(0)
    found = UCT(num_simulations=200, gamma=0.9, max_depth=2)(model, torch.tensor([0]))
    first, rest = found.tree.children[0, 0, 0].tolist()
    assert 45 < found.tree.passed[0, first] < 90 and found.tree.passed[0, rest] == 200 - found.tree.passed[0, first]


def test_the_evaluation_is_used() -> None:
    """Untried actions have its action values, E2W and the backup see them, and leaves its values."""
    mdp, tau = random_mdp(6, 3, gamma=0.9, seed=1, deterministic=True), 0.5
    q0 = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    soft = Entropy(tau)

    def evaluate(state: Tensor) -> Evaluation:
        return Evaluation(soft(q0[state]).value, q0[state])

    found = MENTS(tau=tau, epsilon=0.1, num_simulations=1, gamma=0.9)(
        TabularModel(mdp), torch.tensor([0, 4]), evaluate=evaluate
    )
    for b, root in enumerate((0, 4)):
        q = q0[root].clone()
        (action,) = found.visits[b].nonzero().flatten().tolist()
        successor = mdp.P[root, action].argmax()
        q[action] = mdp.r[root, action] + 0.9 * soft(q0[successor]).value
        assert torch.allclose(found.q[b], q)
        assert found.value[b].item() == pytest.approx(soft(q).value.item())
    unknown = MENTS(tau=tau, epsilon=0.1, num_simulations=1, gamma=0.9)(TabularModel(mdp), torch.tensor([0, 4]))
    assert (unknown.q == -math.inf).sum() == 4


class Counting(SyntheticTrees):
    steps = 0

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.steps += len(state)
        return super().step(state, action)


def test_puct_gives_untried_actions_the_values_of_the_evaluation() -> None:
    trees, q = SyntheticTrees(branching=3, depth=1, num_trees=1, seed=0), torch.tensor([[0.1, 0.9, 0.3]])
    found = PUCT(num_simulations=1, c=0.0)(
        trees, trees.roots(), evaluate=lambda state: Evaluation(torch.zeros(len(state)), q.expand(len(state), 3))
    )
    assert found.visits.tolist() == [[0.0, 1.0, 0.0]]


def test_of_the_actions_tried_most_often_the_best_is_taken() -> None:
    trees = SyntheticTrees(branching=3, depth=1, num_trees=9, seed=0)
    found = UCT(num_simulations=3)(trees, trees.roots())
    assert (found.visits == 1).all() and torch.equal(found.action, found.q.argmax(-1))
    assert found.action.unique().tolist() == [0, 1, 2]


def test_cost_is_linear() -> None:
    """A deterministic model is stepped once for a new node, a stochastic one once for each level of a simulation."""
    for simulations in (20, 40):
        model = Counting(branching=4, depth=6, num_trees=3, seed=0)
        found = UCT(num_simulations=simulations)(model, model.roots())
        assert model.steps == (found.tree.num_nodes - 1).sum() == 3 * simulations
        noisy = Counting(branching=4, depth=6, num_trees=3, seed=0, noise=0.1)
        found = UCT(num_simulations=simulations)(noisy, noisy.roots())
        assert noisy.steps == found.tree.visits.sum()
        assert found.tree.visits[:, 0].sum(-1).tolist() == [simulations] * 3


def test_bytes_of_a_node() -> None:
    trees = SyntheticTrees(branching=5, depth=2, num_trees=2, seed=0)
    uct, ments = (p(num_simulations=9)(trees, trees.roots()).tree for p in (UCT, MENTS))
    assert uct.bytes_per_node() == 32 * 5 + 24 + 8
    assert ments.bytes_per_node() == 40 * 5 + 24 + 8
    total = sum(x.nbytes for x in vars(ments).values() if isinstance(x, Tensor))
    assert total == 2 * 10 * ments.bytes_per_node()


def test_a_search_in_single_precision() -> None:
    trees = SyntheticTrees(branching=3, depth=2, num_trees=4, seed=1)
    found = MENTS(tau=0.5, epsilon=2.0, num_simulations=150, dtype=torch.float32)(trees, trees.roots())
    assert found.value.dtype == torch.float32
    assert (found.value - trees.root_value(Entropy(0.5))).abs().max() < 1e-5


def test_a_schedule_of_the_temperature_is_followed() -> None:
    trees = SyntheticTrees(branching=3, depth=1, num_trees=2, seed=1)
    search = MENTS(tau=0.5, epsilon=2.0, num_simulations=60)
    search.regularizer.tau = 0.05
    found = search(trees, trees.roots(), generator=torch.Generator().manual_seed(0))
    assert (found.value - trees.root_value(Entropy(0.05))).abs().max() < 1e-10


STATE = torch.tensor([0])
BAD = [
    (lambda: UCT(num_simulations=0), "num_simulations must be at least 1, got 0"),
    (lambda: UCT(num_simulations=5, max_depth=0), "max_depth must be at least 1 or None, got 0"),
    (lambda: UCT(num_simulations=5, gamma=1.1), r"gamma must be in \[0, 1\], got 1.1"),
    (lambda: UCT(num_simulations=5, c=-1.0), "c must be a finite number >= 0, got -1.0"),
    (lambda: PUCT(num_simulations=5, c=math.inf), "c must be a finite number >= 0, got inf"),
    (lambda: UCT(num_simulations=5, choose="best"), "choose must be 'q' or 'visits', got 'best'"),
    (lambda: MENTS(num_simulations=5, epsilon=0.0), "epsilon must be a finite number > 0, got 0.0"),
    (lambda: MENTS(num_simulations=5, epsilon=-1.0), "epsilon must be a finite number > 0, got -1.0"),
    (lambda: MENTS(num_simulations=5, tau=0.0), "tau must be a finite number > 0"),
    (lambda: RENTS(num_simulations=5, tau=-0.1), "tau must be a finite number > 0"),
    (lambda: Planner(E2W(), num_simulations=5), "regularizer must be given with E2W"),
    (lambda: UCT(num_simulations=5)(MODELS["tree"][0], torch.tensor(0)), r"state must hold a state for each tree"),
    (lambda: SyntheticTrees(0, 2, seed=0), "branching must be at least 1, got 0"),
    (lambda: SyntheticTrees(2, 0, seed=0), "depth must be at least 1, got 0"),
    (lambda: SyntheticTrees(2, 2, noise=-1.0, seed=0), "noise must be a standard deviation >= 0, got -1.0"),
    (lambda: TabularModel(chain(3, 0.9), num_outcomes=0), "num_outcomes must be at least 1 or None, got 0"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_one_sentence(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()  # type: ignore[operator]
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
