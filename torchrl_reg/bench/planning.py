"""Tree search: simulations per second beside mctx and plain Python, their cost by number and depth, and on Atari.

Synthetic trees of 8 actions and depth 4. If mctx (JAX) is installed, its MuZero policy searches the same trees.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from torchrl_reg.bench.measure import Case, Table
from torchrl_reg.bench.scalar_uct import scalar_uct
from torchrl_reg.modules import NatureCNN
from torchrl_reg.planning import MENTS, UCT, AtariModel, Planner, QEvaluation, SyntheticTrees, search_tables
from torchrl_reg.regularizers import HardMax

BATCHED, MENTS_BATCHED, COMPILED, MCTX, PYTHON = (
    "UCT, batched torch",
    "MENTS, batched torch",
    "UCT, compiled on tables",
    "mctx, MuZero policy (JAX)",
    "UCT, plain Python lists",
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        one: simulations of a single tree.
        trees: trees searched side by side.
        many: simulations of each of them.
        cost: simulations at which cost is measured; twice and four times as many follow.
        depths: depths of the ladders on which cost is measured.
        episodes: Atari games side by side.
        decisions: decisions in each of them.
        simulations: simulations per decision.
    """

    one: int = 1_000
    trees: int = 1_024
    many: int = 64
    cost: int = 100
    depths: tuple[int, ...] = (16, 32, 64)
    episodes: int = 16
    decisions: int = 2
    simulations: int = 50


def planning_tables(sizes: Sizes | None = None) -> list[Table]:
    """All tables; those on Atari if it is installed."""
    sizes = sizes or Sizes()
    atari = [atari_table(sizes)] if _installed("ale_py") else []
    return [
        speed_table(1, sizes.one),
        speed_table(sizes.trees, sizes.many),
        *cost_tables(sizes),
        memory_table(),
        *atari,
    ]


def speed_table(num_trees: int, simulations: int) -> Table:
    """Simulations per second of each implementation on the same trees, mctx among them if installed."""
    trees = SyntheticTrees(branching=8, depth=4, num_trees=num_trees, seed=0)
    uct, ments = UCT(num_simulations=simulations), MENTS(num_simulations=simulations)
    searches: dict[str, Callable[[], object]] = {
        BATCHED: lambda: uct(trees, trees.roots()),
        MENTS_BATCHED: lambda: ments(trees, trees.roots()),
    }
    if _installed("numba"):
        tables = trees.tables()
        search_tables(UCT(num_simulations=2), tables, trees.roots())  # compiles
        searches[COMPILED] = lambda: search_tables(uct, tables, trees.roots())
    if num_trees == 1:
        searches[PYTHON] = lambda: scalar_uct(trees, simulations)
    reference = BATCHED
    if _installed("mctx"):
        searches[MCTX], reference = mctx_search(trees, simulations), MCTX
    done = num_trees * simulations
    cases = [Case(name, _rate(search, done), reference) for name, search in searches.items()]
    return Table(f"Tree search: {num_trees} trees of {simulations} simulations", "simulations/s", cases)


def cost_tables(sizes: Sizes) -> list[Table]:
    """Time of one simulation of 64 trees, by number of simulations and by depth; the ratios show if it is linear."""
    trees = SyntheticTrees(branching=8, depth=4, num_trees=64, seed=0)
    counts = (sizes.cost, 2 * sizes.cost, 4 * sizes.cost)
    numbers = [Case(f"{n} simulations", _microseconds(trees, n), f"{sizes.cost} simulations") for n in counts]
    depths = [
        Case(
            f"depth {depth}",
            _microseconds(SyntheticTrees(branching=1, depth=depth, num_trees=64, seed=0), 2 * max(sizes.depths)),
            f"depth {sizes.depths[0]}",
        )
        for depth in sizes.depths
    ]
    return [
        Table("UCT, 64 trees: one simulation of each, by number of simulations", "us", numbers),
        Table("UCT, 64 trees: one simulation of each, by depth", "us", depths),
    ]


def memory_table() -> Table:
    """Bytes per node of 8 actions, including its state (one int64)."""
    trees = SyntheticTrees(branching=8, depth=2, num_trees=1, seed=0)
    planners: dict[str, Planner] = {"UCT": UCT(num_simulations=5), "MENTS": MENTS(num_simulations=5)}
    planners["MENTS, float32"] = MENTS(num_simulations=5, dtype=torch.float32)
    cases = [Case(name, partial(_node_bytes, planner, trees), "UCT") for name, planner in planners.items()]
    return Table("A node of 8 actions", "bytes", cases)


def atari_table(sizes: Sizes) -> Table:
    """Time of one simulation in all episodes: in emulator and network, and in the search itself."""
    spent: dict[str, float] = {}
    parts = "emulator and network", "the search itself"
    planner = MENTS(num_simulations=sizes.simulations, tau=0.8, gamma=0.99)

    def played() -> float:
        spent.update(atari_profile(planner, sizes.episodes, sizes.decisions))
        return spent[parts[0]]

    title = f"Atari, MENTS of {sizes.simulations} simulations, Nature network, {sizes.episodes} episodes side by side"
    own = Case(parts[1], lambda: spent[parts[1]], parts[0])
    return Table(title, "us", [Case(parts[0], played, parts[0]), own])


def atari_profile(planner: Planner, episodes: int, decisions: int, game: str = "SpaceInvaders") -> dict[str, float]:
    """Microseconds of one simulation in all episodes, by part; the network's weights are random."""
    model, clock = AtariModel(game), {"inner": 0.0}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            clock["inner"] += time.perf_counter() - start
            return result

        return wrapped

    evaluate = timed(QEvaluation(nature(model.num_actions), HardMax(), prior_tau=0.8, observe=model.observation))
    state = model.reset(episodes, seed=0)
    step, model.step = model.step, timed(model.step)  # type: ignore[method-assign]
    total = 0.0
    for _ in range(decisions):
        start = time.perf_counter()
        found = planner(model, state, evaluate=evaluate)
        total += time.perf_counter() - start
        _, state, _ = step(state, found.action)
        model.release(0, keep=state)
    count = decisions * planner.num_simulations
    inner = 1e6 * clock["inner"] / count
    return {"emulator and network": inner, "the search itself": 1e6 * total / count - inner}


def nature(num_actions: int) -> nn.Module:
    """The network of Mnih et al. (2015) with random weights, in float32."""
    torch.manual_seed(0)
    return nn.Sequential(NatureCNN(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, num_actions))


def mctx_search(trees: SyntheticTrees, simulations: int) -> Callable[[], object]:
    """A compiled search of the same trees by mctx."""
    import jax
    import jax.numpy as jnp
    import mctx

    batch, actions = trees.num_trees, trees.num_actions
    leaf_mean = jnp.asarray(trees.leaf_mean.numpy(), jnp.float32)
    logits, nothing = jnp.zeros((batch, actions)), jnp.zeros(batch)

    def step(_params: object, _key: object, action: jax.Array, state: jax.Array) -> tuple[object, jax.Array]:
        tree, node = state[:, 0], state[:, 1]
        child = node * actions + 1 + action
        ended = child >= trees.num_inner
        reward = jnp.where(ended, leaf_mean[tree, jnp.clip(child - trees.num_inner, 0)], 0.0)
        discount = jnp.where(ended, 0.0, 1.0)
        output = mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=nothing)
        return output, jnp.stack((tree, jnp.where(ended, node, child)), -1)

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        state = jnp.stack((jnp.arange(batch), jnp.zeros(batch, jnp.int32)), -1)
        root = mctx.RootFnOutput(prior_logits=logits, value=nothing, embedding=state)
        return mctx.muzero_policy(None, key, root, step, simulations, dirichlet_fraction=0.0).action

    run(jax.random.PRNGKey(0)).block_until_ready()
    return lambda: run(jax.random.PRNGKey(1)).block_until_ready()


def _rate(search: Callable[[], object], simulations: int) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        search()
        return simulations / (time.perf_counter() - start)

    return measure


def _microseconds(trees: SyntheticTrees, simulations: int) -> Callable[[], float]:
    planner = UCT(num_simulations=simulations)
    rate = _rate(lambda: planner(trees, trees.roots()), simulations)
    return lambda: 1e6 / rate()


def _node_bytes(planner: Planner, trees: SyntheticTrees) -> float:
    return float(planner(trees, trees.roots()).tree.bytes_per_node())


def _installed(module: str) -> bool:
    return find_spec(module) is not None
