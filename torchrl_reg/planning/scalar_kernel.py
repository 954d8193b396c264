"""The search of one tree by plain loops: as it stands on Python lists, or compiled by numba on arrays.

An edge is action ``a`` of node ``i``, number ``i A + a`` of flat arrays: ``N`` nodes, ``A`` actions.
"""

# mypy: disallow-untyped-decorators=false
from __future__ import annotations

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

try:
    from numba.extending import overload, register_jitable

    def compiled_for(function: Callable[..., Any]) -> Callable[..., Any]:
        """Numba compiles what this decorates wherever ``function`` is called."""

        def decorated(compiled: Callable[..., Any]) -> Callable[..., Any]:
            overload(function, strict=False)(lambda *_: compiled)
            return compiled

        return decorated

except ImportError:  # then it runs as it stands

    def compiled_for(function: Callable[..., Any]) -> Callable[..., Any]:
        """Nothing."""
        return lambda compiled: compiled

    def register_jitable(function: Callable[..., Any]) -> Callable[..., Any]:  # type: ignore[no-redef]
        """``function``."""
        return function


UCB1, PUCT, E2W = range(3)
AVERAGE, ENTROPY, KL, SPARSEMAX, HARD_MAX = range(5)
_TINY = 2.2250738585072014e-308  # of a float64


# Called by ``bound(grow, step=..., leaf=..., draw=...)``. Globals, as numba caches no code with functions as arguments.
step: Any = None  # step(data, states, node, action, new node) writes the next state, returns reward and end
leaf: Any = None  # leaf(data, states, node, q, prior) writes action values and prior, returns the new node's value
draw: Any = None  # draw(random, simulation, depth) in [0, 1)


def bound(function: Callable[..., Any], name: str = "", /, **names: Any) -> Callable[..., Any]:
    """A copy of ``function`` with these names among its globals."""
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, name or function.__name__)
    copy.__qualname__ = copy.__name__
    return copy


def grow(data: Any, random: Any, states: Any, arrays: Any, whole: Any, real: Any, log_rho: Any) -> None:
    """Grows a tree in place, simulation by simulation as :func:`torchrl_reg.planning.mcts` does.

    Args:
        data, random: for ``step``, ``leaf`` and ``draw``.
        states: of the nodes ``[N]``.
        arrays: those of a :class:`~torchrl_reg.planning.Tree`, flat: ``[N A]``, or ``[N]`` of nodes.
        whole: nodes N, actions A, largest depth, rule of selection, kind of backup, and flags: untried actions have
            values, the parent's policy is the prior.
        real: weight of the bonus (or epsilon), discount, temperature.
        log_rho: logarithms of a prior ``[A]``, overwritten where it is the parent's.
    """
    children, visits, reward, q, value, passed, alive, pi, prior = arrays
    num_nodes, num_actions, max_depth, rule, kind, known, inherits = whole
    weight, gamma, tau = real
    nodes, edges, scratch = [0] * num_nodes, [0] * num_nodes, [0.0] * num_actions
    for number in range(1, num_nodes):
        depth, at, child, ended = 0, 0, -1, False
        while depth < max_depth:
            first = at * num_actions
            if rule == UCB1:
                edge = _ucb1(q, visits, first, num_actions, weight)
            elif rule == PUCT:
                edge = _puct(q, visits, value[at], prior, first, num_actions, weight, known)
            else:
                edge = _e2w(pi, visits, first, num_actions, weight, draw(random, number - 1, depth))
            nodes[depth], edges[depth] = at, edge
            depth += 1
            child = children[edge]
            if child < 0:
                child = children[edge] = number
                reward[edge], ended = step(data, states, at, edge - first, number)
                if not ended:
                    value[number] = leaf(data, states, number, q, prior)
                break
            if alive[child] == 0:
                ended = True
                break
            at = child
        passed[child] += 1
        future = 0.0
        if not ended:
            alive[child] += 1
            future = value[child]
        for i in range(depth - 1, -1, -1):
            at, edge = nodes[i], edges[i]
            target = reward[edge] + gamma * future
            visits[edge] = tried = visits[edge] + 1
            passed[at] += 1
            alive[at] = met = alive[at] + 1
            if kind == AVERAGE:
                mean = q[edge]  # each read once: in Python that counts
                q[edge] = mean + (target - mean) / tried
                mean = value[at]
                value[at] = mean + (target - mean) / met
                future = target
                continue
            q[edge] = target
            first = at * num_actions
            if inherits:
                _inherit(log_rho, pi, visits, nodes[i - 1] * num_actions if i > 0 else -1, num_actions, known)
            if kind == SPARSEMAX:
                future = _sparsemax(q, visits, pi, first, num_actions, tau, known, scratch)
            elif kind == HARD_MAX:
                future = _hard_max(q, visits, pi, first, num_actions, known)
            else:
                future = _soft(q, visits, pi, first, num_actions, tau, known, log_rho)
            value[at] = future


def draw_compiled(table: Any, simulation: int, depth: int) -> float:
    """The number of ``table [N, depth]``, or one of numba's generator if the table is empty."""
    return table[simulation, depth] if table.size else np.random.random()


def grow_all(
    data: Any, seeds: Any, uniform: Any, states: Any, arrays: Any, whole: Any, real: Any, log_rho: Any
) -> None:
    """Grows all trees ``[B]`` in place, compiled; ``grow`` and ``leaf`` are bound to compiled functions."""
    children, visits, reward, q, value, passed, alive, pi, prior = arrays
    for b in range(len(states)):
        np.random.seed(seeds[b])
        value[b, 0] = leaf(data, states[b], 0, q[b], prior[b])
        rows = (children[b], visits[b], reward[b], q[b], value[b], passed[b], alive[b], pi[b], prior[b])
        grow(data, uniform[b], states[b], rows, whole, real, log_rho.copy())


def _ucb1(q: Any, visits: Any, first: int, num_actions: int, c: float) -> int:
    """Of lists, as Python is fastest; compiled, :func:`_ucb1_of_arrays` takes its place."""
    counts = visits[first : first + num_actions]
    if 0.0 in counts:
        return first + counts.index(0.0)
    log, sqrt, chosen, best, edge = math.log(sum(counts)), math.sqrt, first, -math.inf, first
    for n in counts:
        score = q[edge] + c * sqrt(log / n)
        if score > best:
            chosen, best = edge, score
        edge += 1
    return chosen


@compiled_for(_ucb1)
def _ucb1_of_arrays(q: Any, visits: Any, first: int, num_actions: int, c: float) -> int:
    count = 0.0
    for edge in range(first, first + num_actions):
        n = visits[edge]
        if n == 0:
            return edge
        count += n
    log, chosen, best = math.log(count), first, -math.inf
    for edge in range(first, first + num_actions):
        score = q[edge] + c * math.sqrt(log / visits[edge])
        if score > best:
            chosen, best = edge, score
    return chosen


@register_jitable
def _puct(q: Any, visits: Any, value: float, prior: Any, first: int, num_actions: int, c: float, known: bool) -> int:
    count = 1.0
    for edge in range(first, first + num_actions):
        count += visits[edge]
    root, chosen, best = math.sqrt(count), first, -math.inf
    for edge in range(first, first + num_actions):
        rho = prior[edge] if len(prior) else 1 / num_actions
        estimate = q[edge] if known or visits[edge] > 0 else value
        score = estimate + c * rho * root / (visits[edge] + 1)
        if score > best:
            chosen, best = edge, score
    return chosen


@register_jitable
def _e2w(pi: Any, visits: Any, first: int, num_actions: int, epsilon: float, u: float) -> int:
    count = 0.0
    for edge in range(first, first + num_actions):
        count += visits[edge]
    explored = 1.0 if count == 0 else min(1.0, epsilon * num_actions / math.log1p(count))
    total, last = 0.0, first + num_actions - 1
    for edge in range(first, last):
        total += pi[edge] + explored * (1 / num_actions - pi[edge])
        if total > u:
            return edge
    return last


@register_jitable
def _inherit(log_rho: Any, pi: Any, visits: Any, parent: int, num_actions: int, known: bool) -> None:
    """The logarithm of the parent's policy, uniform until each of its actions has a value."""
    ready = parent >= 0
    if ready and not known:
        for edge in range(parent, parent + num_actions):
            ready = ready and visits[edge] > 0
    for a in range(num_actions):
        log_rho[a] = math.log(max(pi[parent + a], _TINY)) if ready else -math.log(num_actions)


@register_jitable
def _largest(q: Any, visits: Any, first: int, num_actions: int, known: bool) -> int:
    """The edge of the largest action value there is."""
    best = -1
    for edge in range(first, first + num_actions):
        if (known or visits[edge] > 0) and (best < 0 or q[edge] > q[best]):
            best = edge
    return best


@register_jitable
def _soft(q: Any, visits: Any, pi: Any, first: int, num_actions: int, tau: float, known: bool, log_rho: Any) -> float:
    top, total = q[_largest(q, visits, first, num_actions, known)], 0.0
    for a in range(num_actions):
        edge, mass = first + a, 0.0
        if known or visits[edge] > 0:
            mass = math.exp((q[edge] - top) / tau + log_rho[a])
        pi[edge] = mass
        total += mass
    for edge in range(first, first + num_actions):
        pi[edge] /= total
    return top + tau * math.log(total)


@register_jitable
def _hard_max(q: Any, visits: Any, pi: Any, first: int, num_actions: int, known: bool) -> float:
    best = _largest(q, visits, first, num_actions, known)
    for edge in range(first, first + num_actions):
        pi[edge] = 1.0 if edge == best else 0.0
    return q[best]


@register_jitable
def _sparsemax(
    q: Any, visits: Any, pi: Any, first: int, num_actions: int, tau: float, known: bool, scratch: Any
) -> float:
    top, size = q[_largest(q, visits, first, num_actions, known)], 0
    for edge in range(first, first + num_actions):
        if known or visits[edge] > 0:  # sorted in, the largest first
            z, place = (q[edge] - top) / tau, size
            while place > 0 and scratch[place - 1] < z:
                scratch[place] = scratch[place - 1]
                place -= 1
            scratch[place] = z
            size += 1
    total, threshold = 0.0, 0.0
    for i in range(size):
        total += scratch[i]
        if (i + 1) * scratch[i] > total - 1:
            threshold = (total - 1) / (i + 1)
    squares, gain = 0.0, 0.0
    for edge in range(first, first + num_actions):
        share = 0.0
        if known or visits[edge] > 0:
            share = max((q[edge] - top) / tau - threshold, 0.0)
        pi[edge] = share
        squares += share * share
        gain += share * (q[edge] - top)
    return top + gain - tau * (squares - 1) / 2
