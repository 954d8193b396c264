"""UCT in plain Python lists on one synthetic tree: what a short script of your own achieves."""

from __future__ import annotations

import math

from torchrl_reg.planning import SyntheticTrees


def scalar_uct(trees: SyntheticTrees, simulations: int, c: float = math.sqrt(2)) -> list[int]:
    """Visits of the root's actions ``[A]`` in the first of ``trees``, which must be noise-free."""
    actions, inner, leaf_mean = trees.num_actions, trees.num_inner, trees.leaf_mean[0].tolist()
    visits, totals = [[0] * actions], [[0.0] * actions]
    children, states = [[-1] * actions], [0]
    for _ in range(simulations):
        at, path, value = 0, [], 0.0
        while True:
            n, total = visits[at], totals[at]
            if 0 in n:
                action = n.index(0)
            else:
                log = math.log(sum(n))
                scores = [t / m + c * math.sqrt(log / m) for t, m in zip(total, n, strict=True)]
                action = scores.index(max(scores))
            path.append((at, action))
            child = children[at][action]
            state = states[at] * actions + 1 + action
            if child < 0:
                children[at][action] = len(states)
                states.append(state)
                visits.append([0] * actions)
                totals.append([0.0] * actions)
                children.append([-1] * actions)
            if state >= inner:
                value = leaf_mean[state - inner]
            if child < 0 or state >= inner:
                break
            at = child
        for at, action in path:
            visits[at][action] += 1
            totals[at][action] += value
    return visits[0]
