"""UCT in plain Python lists on one synthetic tree: what a short script of your own achieves."""

from __future__ import annotations

import math

from torchrl_reg.planning import SyntheticTrees


def scalar_uct(trees: SyntheticTrees, simulations: int, c: float = math.sqrt(2)) -> list[int]:
    """Visits of the root's actions ``[A]`` in the first of ``trees``, which must be noise-free."""
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
