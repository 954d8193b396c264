"""How fast is tree search? Beside mctx and plain Python on synthetic trees; cost by number and depth; share on Atari.

Trees of 8 actions and depth 4. If mctx (JAX) is installed, its MuZero policy searches the same trees, on one thread.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from tests.benchmarks.measure import Measure, Table, main, microseconds
from torchrl_reg.modules import NatureCNN
from torchrl_reg.planning import (
    MENTS,
    UCT,
    AtariModel,
    Planner,
    PythonModel,
    QEvaluation,
    SyntheticTrees,
    search_tables,
)
from torchrl_reg.regularizers import HardMax


def tables(simulations: int = 1_000, trees: int = 1_024, decisions: int = 2) -> list[Table]:
    """Simulations/s on one tree and on many, cost and memory of a simulation, and the share of the search on Atari."""
    atari = [atari_table(decisions)] if find_spec("ale_py") else []
    many = max(2, simulations * 64 // 1_000)
    return [speed_table(1, simulations), speed_table(trees, many), *cost_tables(simulations), memory_table(), *atari]


def speed_table(num_trees: int, simulations: int) -> Table:
    """Simulations per second of each implementation on the same trees; mctx is the reference if it is installed."""
    trees = SyntheticTrees(branching=8, depth=4, num_trees=num_trees, seed=0)
    uct, ments = UCT(num_simulations=simulations), MENTS(num_simulations=simulations)
    searches: dict[str, Callable[[], object]] = {}
    if find_spec("mctx"):
        searches["mctx, MuZero policy (JAX)"] = mctx_search(trees, simulations)
    if num_trees == 1:
        searches["UCT, plain Python lists"] = lambda: scalar_uct(trees, simulations)
        searches["MENTS, plain Python lists"] = lambda: scalar_ments(trees, simulations)
        walk = PythonModel(partial(_walk, trees.leaf_mean[0].tolist(), trees.num_actions, trees.num_inner), 8)
        searches["UCT, PythonModel"] = lambda: uct(walk, [0])
        searches["MENTS, PythonModel"] = lambda: ments(walk, [0])
    if find_spec("numba"):
        lists = trees.tables()
        for planner in (uct, ments):
            search_tables(type(planner)(num_simulations=2), lists, trees.roots())  # compiles
            name = f"{type(planner).__name__}, compiled on tables"
            searches[name] = partial(search_tables, planner, lists, trees.roots())
    noisy = SyntheticTrees(branching=8, depth=4, num_trees=num_trees, noise=1e-9, seed=0)  # steps at every node
    searches["UCT side by side, stochastic"] = lambda: uct(noisy, noisy.roots())
    searches["MENTS side by side, stochastic"] = lambda: ments(noisy, noisy.roots())

    def rate(search: Callable[[], object]) -> float:
        return 1e6 * num_trees * simulations / microseconds(search, 1)()

    cases = {name: partial(rate, search) for name, search in searches.items()}
    return Table(f"Tree search: {num_trees} trees of {simulations} simulations", "simulations/s", cases)


def cost_tables(simulations: int) -> list[Table]:
    """Time of one simulation of 64 trees, by number of simulations and by depth; the ratios show if it is linear."""

    def cost(count: int, **shape: int) -> Measure:
        trees = SyntheticTrees(num_trees=64, seed=0, **shape)
        search = partial(UCT(num_simulations=count), trees, trees.roots())
        return lambda: microseconds(search, 1)() / count

    counts = [max(2, simulations * n // 10) for n in (1, 2, 4)]
    depths = [max(2, simulations * n // 1_000) for n in (16, 32, 64)]
    title = "UCT, 64 trees: one simulation of each, by"
    return [
        Table(f"{title} number", "us", {f"{n} simulations": cost(n, branching=8, depth=4) for n in counts}),
        Table(f"{title} depth", "us", {f"depth {n}": cost(2 * depths[-1], branching=1, depth=n) for n in depths}),
    ]


def memory_table() -> Table:
    """Bytes per node of 8 actions, including its state (one int64)."""
    trees = SyntheticTrees(branching=8, depth=2, num_trees=1, seed=0)
    planners = {"UCT": UCT(num_simulations=5), "MENTS": MENTS(num_simulations=5)}
    planners["MENTS, float32"] = MENTS(num_simulations=5, dtype=torch.float32)

    def node(planner: Planner) -> float:
        return float(planner(trees, trees.roots()).tree.bytes_per_node())

    return Table("A node of 8 actions", "bytes", {name: partial(node, planner) for name, planner in planners.items()})


def atari_table(decisions: int, episodes: int = 16, simulations: int = 50, game: str = "SpaceInvaders") -> Table:
    """Time of one simulation in all episodes: in emulator and network (random weights), and in the search itself."""
    planner = MENTS(num_simulations=simulations, tau=0.8, gamma=0.99)
    spent = {"inner": 0.0, "all": 0.0}

    def timed(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[what] += time.perf_counter() - start
            return result

        return wrapped

    def play() -> float:
        model = AtariModel(game)
        network = nn.Sequential(NatureCNN(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, model.num_actions))
        evaluate = timed(QEvaluation(network, HardMax(), prior_tau=0.8, observe=model.observation), "inner")
        state, step = model.reset(episodes, seed=0), model.step
        model.step = timed(step, "inner")
        spent.update(dict.fromkeys(spent, 0.0))
        for _ in range(decisions):
            found = timed(planner, "all")(model, state, evaluate=evaluate)
            _, state, _ = step(state, found.action)
            model.release(0, keep=state)
        return 1e6 * spent["inner"] / (decisions * simulations)

    own = {"the search itself": lambda: 1e6 * (spent["all"] - spent["inner"]) / (decisions * simulations)}
    title = f"Atari, MENTS of {simulations} simulations, Nature network, {episodes} episodes side by side"
    return Table(title, "us", {"emulator and network": play, **own})


def scalar_uct(trees: SyntheticTrees, simulations: int, c: float = math.sqrt(2)) -> list[int]:
    """Visits of the root's actions ``[A]`` in the first of ``trees``, which must be noise-free: a short script."""
    actions, inner, leaf_mean = trees.num_actions, trees.num_inner, trees.leaf_mean[0].tolist()
    visits, totals = {0: [0] * actions}, {0: [0.0] * actions}
    for _ in range(simulations):
        state, path = 0, []
        while state in visits:
            n, total = visits[state], totals[state]
            if 0 in n:
                action = n.index(0)
            else:
                log = math.log(sum(n))
                scores = [t / m + c * math.sqrt(log / m) for t, m in zip(total, n, strict=True)]
                action = scores.index(max(scores))
            path.append((n, total, action))
            state = state * actions + 1 + action
        if state < inner:
            visits[state], totals[state] = [0] * actions, [0.0] * actions
        for n, total, action in path:
            n[action] += 1
            total[action] += leaf_mean[state - inner] if state >= inner else 0.0
    return visits[0]


def scalar_ments(trees: SyntheticTrees, simulations: int, tau: float = 0.1, epsilon: float = 0.1) -> list[int]:
    """The same of MENTS, by the script's own random numbers."""
    actions, inner, leaf_mean = trees.num_actions, trees.num_inner, trees.leaf_mean[0].tolist()
    visits, q, pi = {0: [0] * actions}, {0: [0.0] * actions}, {0: [1 / actions] * actions}
    for _ in range(simulations):
        state, path = 0, []
        while state in visits:
            count = sum(visits[state])
            lam = min(1.0, epsilon * actions / math.log(count + 1)) if count else 1.0
            masses = accumulate((1 - lam) * p + lam / actions for p in pi[state])
            u = random.random()
            action = next((a for a, mass in enumerate(masses) if u < mass), actions - 1)
            path.append((state, action))
            state = state * actions + 1 + action
        value = leaf_mean[state - inner] if state >= inner else 0.0
        if state < inner:
            visits[state], q[state], pi[state] = [0] * actions, [0.0] * actions, [1 / actions] * actions
        for node, action in reversed(path):
            visits[node][action] += 1
            q[node][action] = value
            top = max(x for x, n in zip(q[node], visits[node], strict=True) if n)
            masses = [math.exp((x - top) / tau) if n else 0.0 for x, n in zip(q[node], visits[node], strict=True)]
            total = sum(masses)
            pi[node] = [m / total for m in masses]
            value = top + tau * math.log(total)
    return visits[0]


def _walk(leaf_mean: list[float], actions: int, inner: int, state: int, action: int) -> tuple[float, int, bool]:
    following = state * actions + 1 + action
    ended = following >= inner
    return leaf_mean[following - inner] if ended else 0.0, following, ended


def mctx_search(trees: SyntheticTrees, simulations: int) -> Callable[[], object]:
    """A compiled search of the same trees by mctx, on one thread."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
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


if __name__ == "__main__":
    main(tables)
