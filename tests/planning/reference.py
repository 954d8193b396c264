"""Plain scalar searches to compare with: dictionaries and loops, one tree, nothing shared with the library."""

from __future__ import annotations

import math
from typing import Any

import torch


class ScalarUCT:
    """UCT on a deterministic model; nodes are numbered by the simulation that adds them."""

    def __init__(self, model: Any, state: Any, *, simulations: int, c: float, gamma: float, value: Any = None) -> None:
        self.model, self.c, self.gamma = model, c, gamma
        self.value_of = value or (lambda state: 0.0)
        self.nodes = {0: self.node(state)}
        for number in range(1, simulations + 1):
            self.simulate(number)

    def node(self, state: Any) -> dict[str, Any]:
        actions = self.model.num_actions
        return {"state": state, "n": [0] * actions, "total": [0.0] * actions, "child": [None] * actions, "end": False}

    def best(self, node: dict[str, Any]) -> int:
        if 0 in node["n"]:
            return node["n"].index(0)
        log = math.log(sum(node["n"]))
        scores = [t / n + self.c * math.sqrt(log / n) for t, n in zip(node["total"], node["n"], strict=True)]
        return scores.index(max(scores))

    def simulate(self, number: int) -> None:
        at, path, rewards, value = 0, [], [], 0.0
        while True:
            node = self.nodes[at]
            action = self.best(node)
            path.append((at, action))
            reward, state, ended = (
                x[0].item() for x in self.model.step(torch.tensor([node["state"]]), torch.tensor([action]))
            )
            rewards.append(reward)
            if node["child"][action] is None:
                node["child"][action] = number
                self.nodes[number] = self.node(state)
                self.nodes[number]["end"] = ended
                value = 0.0 if ended else self.value_of(state)
                break
            if ended:
                break
            at = node["child"][action]
        for (at, action), reward in zip(reversed(path), reversed(rewards), strict=True):
            value = reward + self.gamma * value
            self.nodes[at]["n"][action] += 1
            self.nodes[at]["total"][action] += value


def as_json(tree: Any, index: int = 0) -> dict[str, Any]:
    """A tree of the library as nested dictionaries, children by action and outcome."""

    def node(number: int) -> dict[str, Any]:
        children = {
            f"{action}.{outcome}": node(int(tree.children[index, number, action, outcome]))
            for action in range(tree.children.shape[2])
            for outcome in range(tree.children.shape[3])
            if tree.children[index, number, action, outcome] >= 0
        }
        return {
            "node": number,
            "state": tree.state[index, number].tolist(),
            "value": round(tree.value[index, number].item(), 12),
            "passed": int(tree.passed[index, number]),
            "alive": int(tree.alive[index, number]),
            "visits": [int(n) for n in tree.visits[index, number]],
            "q": [round(x, 12) for x in tree.q[index, number].tolist()],
            "reward": [round(x, 12) for x in tree.reward[index, number].tolist()],
            "children": children,
        }

    return node(0)
