"""Simulations a second of tree search, measured one after the other in one run (never asserted: machines are noisy).

python tests/benchmark_planning.py [--rounds 3]

Synthetic trees of 8 actions and depth 4, one thread. CPU time, too, which a busy machine falsifies less. Where mctx
(JAX) is installed its MuZero policy searches the same trees.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from torchrl_reg.planning import MENTS, UCT, SyntheticTrees, search_tables


def searches(trees: SyntheticTrees, simulations: int) -> dict[str, Callable[[], object]]:
    """The ways of searching ``trees``."""
    uct, ments = UCT(num_simulations=simulations), MENTS(num_simulations=simulations)
    cases: dict[str, Callable[[], object]] = {
        "UCT": lambda: uct(trees, trees.roots()),
        "MENTS": lambda: ments(trees, trees.roots()),
    }
    try:
        tables = trees.tables()
        search_tables(UCT(num_simulations=2), tables, trees.roots())  # compiles
        cases["UCT, compiled"] = lambda: search_tables(uct, tables, trees.roots())
    except ValueError as error:
        print(error)
    try:
        cases["mctx, MuZero policy"] = mctx_search(trees, simulations)
    except ImportError as error:
        print(f"without mctx: {error}")
    return cases


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for num_trees, simulations in ((1, 200), (64, 64), (1024, 64)):
        trees = SyntheticTrees(branching=8, depth=4, num_trees=num_trees, seed=0)
        print(f"{num_trees} trees, {simulations} simulations each: simulations a second, by the clock and by CPU time")
        cases = searches(trees, simulations)
        best = {name: [0.0, 0.0] for name in cases}
        for _ in range(rounds):
            for name, search in cases.items():
                clock, cpu = time.perf_counter(), time.process_time()
                search()
                spent = (time.perf_counter() - clock, time.process_time() - cpu)
                best[name] = [max(b, num_trees * simulations / s) for b, s in zip(best[name], spent, strict=True)]
        for name, (by_clock, by_cpu) in best.items():
            print(f"  {name:24s} {by_clock:12,.0f} {by_cpu:12,.0f}", flush=True)


if __name__ == "__main__":
    main()
