"""Speed of tree search on synthetic trees, one or many, compared with mctx and plain Python.

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

from tests.benchmarks.measure import Table, main
from torchrl_reg.planning import (
    MENTS,
    UCT,
    PythonModel,
    SyntheticTrees,
    search_tables,
)


def table(simulations: int = 1_000, trees: int = 1) -> Table:
    """Simulations/s of each implementation on the same trees; mctx is the reference if it is installed."""
    same = SyntheticTrees(branching=8, depth=4, num_trees=trees, seed=0)
    uct, ments = UCT(num_simulations=simulations), MENTS(num_simulations=simulations)
    searches: dict[str, Callable[[], object]] = {}
    if find_spec("mctx"):
        searches["mctx, MuZero policy (JAX)"] = mctx_search(same, simulations)
    if trees == 1:
        searches["UCT, plain Python lists"] = lambda: scalar_uct(same, simulations)
        searches["MENTS, plain Python lists"] = lambda: scalar_ments(same, simulations)
        walk = PythonModel(partial(_walk, same.leaf_mean[0].tolist(), same.num_actions, same.num_inner), 8)
        searches["UCT, PythonModel"] = lambda: uct(walk, [0])
        searches["MENTS, PythonModel"] = lambda: ments(walk, [0])
    if find_spec("numba"):
        lists = same.tables()
        for planner in (uct, ments):
            search_tables(type(planner)(num_simulations=2), lists, same.roots())  # compiles
            name = f"{type(planner).__name__}, compiled on tables"
            searches[name] = partial(search_tables, planner, lists, same.roots())
    noisy = SyntheticTrees(branching=8, depth=4, num_trees=trees, noise=1e-9, seed=0)  # steps at every node
    searches["UCT side by side, stochastic"] = lambda: uct(noisy, noisy.roots())
    searches["MENTS side by side, stochastic"] = lambda: ments(noisy, noisy.roots())

    def rate(search: Callable[[], object]) -> float:
        start = time.perf_counter()
        search()
        return trees * simulations / (time.perf_counter() - start)

    cases = {name: partial(rate, search) for name, search in searches.items()}
    return Table(f"Tree search: {trees} trees of {simulations} simulations", "simulations/s", cases)


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
    main(table)
