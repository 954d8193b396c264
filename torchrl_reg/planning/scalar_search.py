"""Searches tree by tree, by plain loops: compiled by numba where the model is, else in Python on lists.

Shapes: ``B`` trees, ``N`` nodes of a tree, ``A`` actions, ``S`` numbers in a state.
"""

from __future__ import annotations

import importlib.util
import inspect
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrl_reg.planning.search import zero_evaluation
from torchrl_reg.planning.tree import Evaluate, Evaluation, Model, Tree, allocate

RULES = ("ucb1", "puct", "e2w")  # in the order of the kernel's numbers
BACKUPS = ("average", "entropy", "kl", "sparsemax", "hard_max")
_COMPILING_PAYS = 10_000  # simulations of a call: loading compiled code takes half a second, compiling five
_FEW_TREES = 16  # more are faster side by side than one by one in Python


@dataclass(frozen=True)
class Scalar:
    """A model for the scalar search, as its ``scalar(evaluate)`` returns it; None: only searches side by side.

    Args:
        step, leaf, data: see :func:`torchrl_reg.planning.scalar_kernel.grow`.
        compiles: whether numba can compile these, ``data`` being arrays.
        states: makes the list of the states of a tree's nodes ``[N]`` from its root, for Python.
        known, has_prior: whether ``leaf`` writes action values and priors.
        draws_nothing: whether random numbers may be drawn ahead, because nothing else draws any.
    """

    step: Callable[..., Any]
    leaf: Callable[..., Any]
    data: tuple[Any, ...] = ()
    compiles: bool = False
    states: Callable[[Any, int], Any] = lambda root, count: [root] * count
    known: bool = False
    has_prior: bool = False
    draws_nothing: bool = True


def scalar_tree(
    planner: Any,
    model: Any,
    state: Any,
    *,
    evaluate: Evaluate = zero_evaluation,
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
    always: bool = False,
) -> Tree | None:
    """The trees of ``planner(model, state)``, or None where rule, regularizer or model have no scalar form.

    Compiled searches by E2W draw their own random numbers, from a seed of ``generator``; Python ones on one tree draw
    those of the search side by side, and all take ``uniform``.

    Args:
        planner, model, state: of :class:`torchrl_reg.planning.Planner`; ``always`` compiles however few simulations.
        evaluate, generator, uniform: of :func:`torchrl_reg.planning.mcts`.
    """
    rule, backup = declared(planner.select, "scalar_rule"), _backup(planner.regularizer)
    if rule is None or backup is None or planner.dtype != torch.float64 or not _has_states(state):
        return None
    scalar = model.scalar(evaluate) if _has_scalar_form(model) else None
    if scalar is None and isinstance(state, Tensor) and len(state) == 1 and state.device.type == "cpu":
        scalar = None if model.stochastic else _of_tensors(model, evaluate, state)
    few = len(state) <= _FEW_TREES and (len(state) == 1 or rule != "e2w" or uniform is not None)
    pays = always or len(state) * planner.num_simulations >= _COMPILING_PAYS
    if scalar is None or not (few or (scalar.compiles and pays) or isinstance(state, list)):
        return None
    tree = _allocated(planner, model, state, scalar)
    tau = 1.0 if planner.regularizer is None else float(getattr(planner.regularizer, "tau", 1.0))
    weight = getattr(planner.select, "c", getattr(planner.select, "epsilon", 0.0))
    size, depth = (planner.num_simulations + 1, model.num_actions), planner.max_depth or planner.num_simulations
    whole = (*size, depth, RULES.index(rule), BACKUPS.index(backup), scalar.known, planner.parent_prior)
    settings = (whole, (float(weight), float(planner.gamma), tau), _log_rho(planner.regularizer, size[1]))
    if scalar.compiles and pays and (always or importlib.util.find_spec("numba") is not None):
        _compiled_search(scalar, tree, settings, generator, uniform)
    else:
        _python_search(scalar, tree, state, settings, generator, uniform)
    return tree


def _has_states(state: Any) -> bool:
    return len(state) > 0 if isinstance(state, list) else state.ndim > 0 and len(state) > 0


def _has_scalar_form(model: Any) -> bool:
    """True if ``scalar`` belongs to the current ``step`` rather than to one that a subclass or an owner replaced."""
    owners = [next((i for i, kind in enumerate(type(model).mro()) if n in vars(kind)), 99) for n in ("scalar", "step")]
    return owners[0] < 99 and owners[0] <= owners[1] and "step" not in vars(model)


def declared(thing: Any, name: str) -> Any:
    """Attribute ``name`` of ``thing`` if its own class defines it: a subclass may compute something else."""
    return getattr(thing, name) if name in vars(type(thing)) else None


def _backup(regularizer: Any) -> str | None:
    return "average" if regularizer is None else declared(regularizer, "scalar_form")


def _log_rho(regularizer: Any, num_actions: int) -> list[float]:
    """The logarithm of a fixed prior ``[A]``; 0 of the entropy, which has none."""
    if declared(regularizer, "scalar_form") != "kl":
        return [0.0] * num_actions
    return regularizer.log_prior(torch.zeros(num_actions, dtype=torch.float64)).double().tolist()


def _allocated(planner: Any, model: Any, state: Any, scalar: Scalar) -> Tree:
    """Empty trees, but for what ``scalar`` writes of their roots."""
    roots = state if isinstance(state, Tensor) else torch.zeros(len(state), dtype=torch.int64)
    nothing = torch.zeros(len(roots), model.num_actions, dtype=torch.float64)
    known, prior = nothing if scalar.known else None, nothing + 1 / model.num_actions if scalar.has_prior else None
    size = (planner.num_simulations + 1, model.num_actions, 1)
    with_policy = planner.regularizer is not None
    return allocate(roots, size, Evaluation(nothing[:, 0], known, prior), dtype=torch.float64, with_policy=with_policy)


def _arrays(tree: Tree) -> list[Tensor]:
    """The kernel's arrays of all trees, ``[B, N A]`` or ``[B, N]``."""
    names = ("children", "visits", "reward", "q", "value", "passed", "alive", "pi", "prior")
    return [tree.value[:, :0] if (x := getattr(tree, name)) is None else x.flatten(1) for name in names]


def _python_search(
    scalar: Scalar, tree: Tree, state: Any, settings: Any, generator: torch.Generator | None, uniform: Tensor | None
) -> None:
    from torchrl_reg.planning.scalar_kernel import bound, grow

    data = tuple(x.tolist() if isinstance(x, Tensor) else x for x in scalar.data)
    whole, real, log_rho = settings
    roots = state.tolist() if scalar.compiles and state.ndim == 1 else state
    for b, arrays in enumerate(zip(*_arrays(tree), strict=True)):
        lists = [x[-1:].tolist() * len(x) for x in arrays]  # nothing has been written but the roots' leaves
        states = scalar.states(roots[b] if isinstance(roots, list) else roots[b : b + 1], whole[0])
        blocks = _Blocks(generator) if scalar.draws_nothing else None
        random, draw = generator, _torch_draw if blocks is None else blocks.draw
        if uniform is not None:
            random, draw = uniform[b].tolist(), _table_draw  # type: ignore[assignment]
        lists[4][0] = scalar.leaf(data, states, 0, lists[3], lists[8])
        one_tree = bound(grow, step=scalar.step, leaf=scalar.leaf, draw=draw)
        one_tree(data, random, states, lists, whole, real, list(log_rho))
        for array, numbers in zip(arrays, lists, strict=True):
            packed = struct.pack(f"{len(numbers)}{array.numpy().dtype.char}", *numbers)  # twice as fast as np.array
            array.numpy()[:] = np.frombuffer(packed, array.numpy().dtype)
        if blocks is not None:
            blocks.give_back()
        _keep_states(tree, b, states)


def _keep_states(tree: Tree, b: int, states: Any) -> None:
    exist = torch.cat((torch.zeros(1, dtype=torch.int64), tree.children[b][tree.children[b] >= 0]))
    if isinstance(states[0], Tensor):
        tree.state[b, exist] = torch.cat([states[i] for i in exist.tolist()])
    elif isinstance(states, np.ndarray) or (isinstance(states[0], int) and tree.state.ndim == 2):
        tree.state[b] = torch.as_tensor(states)
    else:  # any objects: a state is the number of its node
        tree.state[b, exist] = exist


class _Blocks:
    """Random numbers of ``generator``, many at a time; those not used are given back."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = torch.default_generator if generator is None else generator
        self.start, self.used = self.generator.get_state(), 0
        self.left: Iterator[float] = iter(())

    def draw(self, random: Any, simulation: int, depth: int) -> float:
        self.used += 1
        number = next(self.left, None)
        if number is None:
            self.left = iter(torch.rand(4096, generator=self.generator, dtype=torch.float64).tolist())
            number = next(self.left)
        return number

    def give_back(self) -> None:
        self.generator.set_state(self.start)
        torch.rand(self.used, generator=self.generator, dtype=torch.float64)


def _torch_draw(generator: torch.Generator | None, simulation: int, depth: int) -> float:
    return torch.rand(1, generator=generator, dtype=torch.float64).item()


def _table_draw(table: list[list[float]], simulation: int, depth: int) -> float:
    return table[simulation][depth]


def _of_tensors(model: Model, evaluate: Evaluate, state: Tensor) -> Scalar:
    """Of any deterministic model: states are rows ``[1, *S]``."""

    def step(data: Any, states: list[Tensor], at: int, action: int, node: int) -> tuple[float, bool]:
        reward, states[node], ended = model.step(states[at], torch.tensor([action]))
        return float(reward), bool(ended)

    if evaluate is zero_evaluation:
        return Scalar(step, lambda *_: 0.0, draws_nothing=False)
    with torch.no_grad():
        root = evaluate(state)

    def leaf(data: Any, states: list[Tensor], node: int, q: list[float], prior: list[float]) -> float:
        found = evaluate(states[node]) if node > 0 else root
        for numbers, given in ((q, found.q), (prior, found.prior)):
            if given is not None:
                row = given[0].double().tolist()
                numbers[node * len(row) : (node + 1) * len(row)] = row
        return float(found.value.double())

    known, has_prior = root.q is not None, root.prior is not None
    return Scalar(step, leaf, known=known, has_prior=has_prior, draws_nothing=False)


def _compiled_search(
    scalar: Scalar, tree: Tree, settings: Any, generator: torch.Generator | None, uniform: Tensor | None
) -> None:
    whole, real, log_rho = settings
    seeds = torch.randint(2**32, (len(tree.state),), generator=generator).numpy()
    drawn = torch.zeros(len(tree.state), 0, 0, dtype=torch.float64) if uniform is None else uniform.double()
    arrays = tuple(x.numpy() for x in _arrays(tree))
    data = tuple(x.contiguous().numpy() if isinstance(x, Tensor) else x for x in scalar.data)
    grow_all = _compiled(scalar.step, scalar.leaf)
    grow_all(data, seeds, drawn.contiguous().numpy(), tree.state.numpy(), arrays, whole, real, np.array(log_rho))


@cache
def _compiled(step: Callable[..., Any], leaf: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`torchrl_reg.planning.scalar_kernel.grow_all` with this ``step`` and ``leaf``.

    For models of this package numba keeps the code on disk, beside this package or in the user's cache folder.
    """
    try:
        import numba
    except ImportError:
        raise ValueError('search_tables needs numba, got none: pip install "torchrl_reg[planning]".') from None
    from torchrl_reg.planning import scalar_kernel as kernel

    called = {name: f if hasattr(f, "py_func") else numba.njit(f) for name, f in (("step", step), ("leaf", leaf))}
    called["draw"] = numba.njit(kernel.draw_compiled)
    called["grow"] = numba.njit(kernel.bound(kernel.grow, **called))
    if not step.__module__.startswith(f"{__package__}.") or step.__closure__ is not None:
        return numba.njit(kernel.bound(kernel.grow_all, **called))
    # numba finds code on disk by the name and source of grow_all alone; a change of what it calls must change its name.
    sources = {inspect.getsource(sys.modules[f.__module__]) for f in (kernel.grow, step, leaf)}
    name = f"grow_all_{step.__name__}_{sha256(''.join(sorted(sources)).encode()).hexdigest()[:16]}"
    grow_all = kernel.bound(kernel.grow_all, name, **called)
    try:
        return numba.njit(cache=True)(grow_all)
    except RuntimeError:  # no folder to write to
        return numba.njit(grow_all)
