"""A function of a minibatch as one graph of tensors: traced once, compiled without guards, compared with eager PyTorch.

Tracing runs Python once, and whatever Python read then is fixed. So a graph belongs to one key, which holds the shapes
and dtypes of the minibatch and every flag, number and mode that can be reached from the loss, and a minibatch of
another key gets another graph. Tensors are not fixed: parameters, targets, moments, coefficients are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchrl_reg.compat import (
    call_hooks,
    compile_trace,
    entries_of,
    flat_entries,
    trace,
    unchecked_tensordict,
    updater_warning,
)
from torchrl_reg.lab.errors import first_line
from torchrl_reg.modules.ensembles import pointers
from torchrl_reg.regularizers import Coefficient

#: Named entries, and the gradients of the parameters where they are not used up inside.
Results = tuple[dict[str, Tensor], list[Tensor | None]]
#: A function with more graphs than this has a key that keeps changing.
MAX_GRAPHS = 16
#: How far the first update of a graph may lie from that of eager PyTorch, relative to the change that it makes.
TOLERANCE = 3e-3  # stacked losses of trained seeds differ by 1e-3 in rounding
_NONE: list[Tensor] = []


class NoGraphError(Exception):
    """There is no graph, and nothing has been changed; the message is the reason."""


class ExtraInputs(NamedTuple):
    """Further inputs of a function, besides a loss and a minibatch."""

    #: Tensors that it may change; the same list as long as they are the same.
    tensors: Callable[[], list[Tensor]] = lambda: _NONE
    #: What it is handed at each call.
    numbers: Callable[[], list[float]] = list
    #: What its graphs fix.
    settings: Callable[[], Any] = tuple


class Graph(Protocol):
    """One graph, called with the tensors of a minibatch and the numbers of its :class:`ExtraInputs`."""

    def __call__(self, given: Sequence[Tensor], numbers: list[float]) -> Results: ...


class GraphKind(Protocol):
    """A class of graphs, by its constructor; the arguments are those of :class:`CompiledGraph`."""

    def __call__(
        self,
        function: Callable[..., list[Tensor]],
        held: Sequence[Tensor],
        given: Sequence[Tensor],
        numbers: Tensor,
        layout: list[Any],
    ) -> Graph: ...

    def trace_inputs(self, given: Sequence[Tensor], numbers: Sequence[float]) -> tuple[Sequence[Tensor], Tensor]:
        """The tensors of the minibatch and the vector of numbers that ``function`` is to read."""


class Graphs:
    """``function(minibatch, numbers)`` as a graph; one for each key.

    Args:
        function: what is traced. It reads and changes tensors of ``loss`` and ``extra``, and nothing else.
        eager: what the first call of a graph has to equal.
        loss: the loss.
        extra: what else ``function`` reads.
        stepped: parameters that ``function`` steps. Adam turns a gradient that is rounding alone into a full step, so
            these are compared as a whole.
        tolerance: see :data:`TOLERANCE`.
        kind: of the graphs: :class:`CompiledGraph`, or :class:`~torchrl_reg.lab.learners.cuda_graph.CudaGraph`.

    Raises (when called):
        NoGraphError: there is no graph of the function, or its graph fails or differs from ``eager``.
    """

    def __init__(
        self,
        function: Callable[[TensorDictBase, Sequence[Tensor]], Results],
        eager: Callable[[TensorDictBase], Results],
        loss: Any,
        extra: ExtraInputs,
        *,
        stepped: Sequence[Tensor] = (),
        tolerance: float = TOLERANCE,
        kind: GraphKind | None = None,
    ) -> None:
        self._function, self._eager, self._loss, self._extra = function, eager, loss, extra
        self._stepped, self._tolerance = [*stepped], tolerance
        self._kind: GraphKind = kind or CompiledGraph
        self._reach: _ReachableState | None = None
        self._graphs: list[tuple[Any, Graph]] = []
        self._count = 0  # of all that there were

    def __call__(self, minibatch: TensorDictBase) -> Results:
        if self._reach is None or not self._reach.is_current(self._extra.tensors()):
            self._reach, self._graphs = _ReachableState(self._loss, self._extra.tensors()), []
        reach = self._reach
        if reach.has_hooks():
            raise NoGraphError("a module of the loss has hooks, which a graph would leave out")
        names, given = flat_entries(minibatch)
        data = [(tensor.shape, tensor.dtype, tensor.device) for tensor in given], names, minibatch.batch_size
        key = (reach.settings(), self._extra.settings(), data)
        for held, graph in self._graphs:
            if held == key:
                return graph(given, self._extra.numbers())
        self._count += 1
        if self._count > MAX_GRAPHS:
            raise NoGraphError(f"shapes, or attributes of the loss, have changed {MAX_GRAPHS} times")
        made, results = self._make(minibatch, names, given, reach.tensors)
        if made is None:
            return results
        if self._reach.names != reach.names:
            self._graphs = []
        self._graphs.append(((self._reach.settings(), *key[1:]), made))
        return results

    def _make(
        self, minibatch: TensorDictBase, names: Any, given: list[Tensor], held: list[Tensor]
    ) -> tuple[Graph | None, Results]:
        """A graph, and the results of its first call; no graph if that of eager PyTorch made tensors to be held."""

        def traced(*_: Tensor) -> list[Tensor]:
            data = _nested(names, inputs, minibatch)
            entries, gradients = self._function(data, vector.unbind())
            layout.append(([*entries], [gradient is not None for gradient in gradients]))
            return [*entries.values(), *(gradient for gradient in gradients if gradient is not None)]

        layout: list[Any] = []
        numbers = self._extra.numbers()
        inputs, vector = self._kind.trace_inputs(given, numbers)
        # Given tensors, too, where a loss can write into them: not one that was expanded.
        before = _Snapshot([*held, *(tensor for tensor in given if tensor.is_contiguous())])
        try:
            extra = self._extra.tensors()
            expected = self._eager(_nested(names, given, minibatch))
            if self._extra.tensors() is not extra:  # which could not be restored: a first step makes its moments
                return None, expected
            after = [tensor.detach().clone() for tensor in held]
            before.restore()
            # A first call may set attributes: private copies of networks follow the mode of the one they copy.
            self._reach = _ReachableState(self._loss, self._extra.tensors())
            settings = self._reach.settings()
            graph = self._kind(traced, held, inputs, vector, layout)
            before.restore()
            if self._reach.settings() != settings:
                raise NoGraphError("the loss changes its own attributes in every call")
            try:
                results = graph(given, numbers)
            except Exception as error:  # inductor of torch 2.11 writes code that reads what it has deleted
                raise NoGraphError(f"its code fails ({first_line(error)})") from error
            self._compare(before.values, after, held, expected, results)
        except BaseException:
            before.restore()
            raise
        return graph, results

    def _compare(
        self, before: list[Tensor], after: list[Tensor], held: list[Tensor], expected: Results, found: Results
    ) -> None:
        """Raises NoGraphError unless the graph returned and changed what eager PyTorch did, up to rounding."""
        for name, a in expected[0].items():
            b, tolerance = found[0][name], self._tolerance
            if not torch.allclose(b.double(), a.double(), tolerance, tolerance / 10, equal_nan=True):
                means = b.double().mean().item(), a.double().mean().item()
                raise NoGraphError("{} is {:.6g} in its graph, {:.6g} in eager PyTorch".format(name, *means))
        gradients = zip(expected[1], found[1], strict=True)
        changes = [_Change(torch.zeros_like(a), a, b) for a, b in gradients if a is not None and b is not None]
        rows = zip(before, after, held, strict=False)
        changes += [_Change(old, a, b) for old, a, b in rows if old.is_floating_point()]
        memory = set(pointers(self._stepped))
        stepped = [change for change in changes if change.found.data_ptr() in memory]
        others = [change for change in changes if change.found.data_ptr() not in memory]
        min_change = 1e-2 * _moved(others)
        distances = [(_distance([change], min_change), self._tolerance) for change in others]
        for distance, max_distance in [*distances, (_distance(stepped), 100 * self._tolerance)]:
            if distance > max_distance:
                raise NoGraphError(f"the update of its graph is {distance:.2%} from that of eager PyTorch")


class _Change(NamedTuple):
    """A tensor before an update, after that of eager PyTorch, and after that of a graph."""

    old: Tensor
    expected: Tensor
    found: Tensor


def _moved(changes: Sequence[_Change]) -> float:
    return _norm(change.expected - change.old for change in changes)


def _distance(changes: Sequence[_Change], min_change: float = 0.0) -> float:
    """Relative to the whole change, or to ``min_change``; rounding of the tensors themselves does not count."""
    rounding = 8 * max((torch.finfo(change.old.dtype).eps for change in changes), default=0.0)
    distance = _norm(change.found - change.expected for change in changes)
    distance -= rounding * _norm(change.expected for change in changes)
    return distance / max(_moved(changes), min_change, 1e-30) if distance > 0 else 0.0


def _norm(tensors: Iterator[Tensor]) -> float:
    """Of all together; what is not finite counts as 0, in a run that has diverged."""
    squares = [float(t.detach().double().nan_to_num(posinf=0.0, neginf=0.0).square().sum()) for t in tensors]
    return math.sqrt(sum(squares))


class _Snapshot:
    """Tensors and the state of the random numbers as they were."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors, self.values = tensors, [tensor.detach().clone() for tensor in tensors]
        self._random, on_gpu = torch.get_rng_state(), any(tensor.is_cuda for tensor in tensors)
        self._on_gpu = torch.cuda.get_rng_state_all() if on_gpu else []

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(value)
        torch.set_rng_state(self._random)
        for number, state in enumerate(self._on_gpu):
            torch.cuda.set_rng_state(state, number)


# ------------------------------------------------------------ one graph


class CompiledGraph:
    """``function(*held, *given, numbers)``, which closes over these very tensors, compiled.

    Args:
        layout: filled by ``function``: the names of its entries, and which gradients there are.

    Raises:
        NoGraphError: ``function`` cannot be traced or compiled.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        held: Sequence[Tensor],
        given: Sequence[Tensor],
        numbers: Tensor,
        layout: list[Any],
    ) -> None:
        try:
            with _NothingRead():
                graph = trace(function, [*held, *given, numbers])
            more = _make_inputs(graph, [*held, *given, numbers])
        except Exception as error:
            raise NoGraphError(f"it cannot be traced ({first_line(error)})") from error
        used = _without_unused(graph)
        self._layout = layout[-1]
        self._reads = used[len(held) : len(held) + len(given)]
        # Written through NumPy: a new tensor takes as long as a small kernel.
        self._numbers, self._write = numbers, numbers.numpy()
        self._reads_numbers = used[len(held) + len(given)]
        # The inputs are, in order: what is held, what is given, the numbers, and other tensors that were read.
        self._held = [tensor.detach() for tensor, is_used in zip(held, used, strict=False) if is_used]
        self._others = [tensor.detach() for tensor in more]
        try:
            self._run = compile_trace(graph, self._inputs(given))
        except Exception as error:
            raise NoGraphError(f"it cannot be compiled ({first_line(error)})") from error

    @staticmethod
    def trace_inputs(given: Sequence[Tensor], numbers: Sequence[float]) -> tuple[Sequence[Tensor], Tensor]:
        """The minibatch itself, and numbers of double precision."""
        return given, torch.tensor(numbers, dtype=torch.float64)

    def _inputs(self, given: Sequence[Tensor]) -> list[Tensor]:
        # Inductor's code takes strides as they were.
        read = [tensor.contiguous() for tensor, is_read in zip(given, self._reads, strict=True) if is_read]
        return [*self._held, *read, *([self._numbers] if self._reads_numbers else ()), *self._others]

    def __call__(self, given: Sequence[Tensor], numbers: list[float]) -> Results:
        self._write[:] = numbers
        with torch.no_grad():
            found = self._run(*self._inputs(given))
        return results_of(found, self._layout)


def results_of(found: Sequence[Tensor], layout: tuple[list[str], list[bool]]) -> Results:
    """The results of a graph, by the names of its entries and by which gradients there are."""
    names, has_gradient = layout
    entries, gradients = dict(zip(names, found, strict=False)), iter(found[len(names) :])
    return entries, [next(gradients) if has else None for has in has_gradient]


class _NothingRead(TorchFunctionMode):
    """Refuses to read values of tensors: a trace would fix them."""

    _READERS = frozenset(("item", "tolist", "numpy", "is_nonzero", "equal", "allclose", "__array__"))
    _READERS |= {"__bool__", "__float__", "__int__", "__index__", "__complex__"}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._READERS:
            raise NoGraphError(f"Python reads a tensor by {func.__name__.strip('_')}()")
        return func(*args, **(kwargs or {}))


def _make_inputs(graph: torch.fx.GraphModule, known: Sequence[Tensor]) -> list[Tensor]:
    """Makes what ``graph`` has as constants its inputs: those of the same memory, or further ones, which it returns.

    Raises:
        NoGraphError: the shape of a result depends on values.
    """
    nodes = list(graph.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    by_memory = {_memory(tensor): node for tensor, node in zip(known, inputs, strict=True) if tensor.numel()}
    more: list[Tensor] = []
    for node in nodes:
        tensor = getattr(graph, node.target, None) if node.op == "get_attr" else None
        if isinstance(tensor, Tensor) and not all("lift_fresh" in str(user.target) for user in node.users):
            held = by_memory.get(_memory(tensor))
            if held is None:
                with graph.graph.inserting_after(inputs[-1]):
                    held = graph.graph.placeholder(f"other_{len(more)}")
                inputs.append(held)
                more.append(tensor)
                by_memory[_memory(tensor)] = held
            node.replace_all_uses_with(held)
            graph.graph.erase_node(node)
        if node.op == "call_function" and _is_ragged(node):
            raise NoGraphError(f"the shape of a result of {node.target} depends on values")
    return more


def _is_ragged(node: torch.fx.Node) -> bool:
    """True if the shape of the result depends on values."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    indices = [index for index in node.args[1] if index is not None]  # type: ignore[union-attr]
    return any(index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)  # type: ignore[union-attr]


def _without_unused(graph: torch.fx.GraphModule) -> list[bool]:
    """Removes unused inputs; returns which were used."""
    graph.graph.eliminate_dead_code()
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    used = [bool(node.users) for node in inputs]
    for node in inputs:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return used


def _memory(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _nested(names: Sequence[tuple[str, ...]], tensors: Sequence[Tensor], like: TensorDictBase) -> TensorDictBase:
    """A new tensordict of these entries, with the batch size and the device of ``like``, inner ones too."""
    nested: dict[str, Any] = {}
    for (*path, last), tensor in zip(names, tensors, strict=True):
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensor

    def packed(entries: dict[str, Any]) -> TensorDictBase:
        inner = {name: packed(value) if isinstance(value, dict) else value for name, value in entries.items()}
        return unchecked_tensordict(inner, like.batch_size, like.device)

    return packed(nested)


# ------------------------------------------------------------ the key


_CONTAINERS = frozenset(("_parameters", "_buffers", "_modules"))
_WATCHED = (Tensor, nn.Module, TensorDictBase, dict)
_SIMPLE = (bool, int, float, str, type(None), torch.dtype, torch.device)
#: Attributes of every module; what they hold is followed by itself, and hooks are watched.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - _CONTAINERS - {"training"}
#: Objects of these packages are followed only where they are modules: a spec decides nothing.
_NOT_FOLLOWED = frozenset(("torch", "torchrl", "tensordict", "numpy", "gymnasium", "builtins", "functools", "weakref"))


class _ReachableState:
    """Everything that can be reached from a loss: tensors, and what Python decides by.

    Args:
        root: the loss. From it modules, containers, and objects of classes of one's own are followed.
        more: further tensors.

    Attributes:
        tensors: all of them, those of one memory once.
        names: of the attributes that are watched, by what holds them.
    """

    def __init__(self, root: Any, more: Sequence[Tensor]) -> None:
        self.names: list[tuple[int, list[str]]] = []
        self._hooks: list[Mapping[Any, Any]] = []
        self._settings: list[tuple[Any, Callable[[Any], Any]]] = []
        self._containers: list[dict[Any, Any]] = []
        self._attributes: list[tuple[dict[str, Any], str]] = []
        self._coefficients: list[Coefficient] = []
        self._seen: dict[int, Any] = {}  # kept, so that no other object gets the id of one of them
        self._walk(root)
        all_tensors = [found for found in self._seen.values() if isinstance(found, Tensor)] + list(more)
        self.tensors = [*{_memory(tensor): tensor for tensor in reversed(all_tensors)}.values()][::-1]
        self._more, self._held = more, self._objects()
        self._memory = pointers(self.tensors)
        self._leaves = [tensor for tensor in self.tensors if isinstance(tensor, nn.Parameter)]

    def _walk(self, root: Any) -> None:
        todo = [root]
        while todo:
            found = todo.pop()
            if id(found) in self._seen or isinstance(found, type):
                continue
            self._seen[id(found)] = found
            if isinstance(found, nn.Module):
                self._hooks += call_hooks(found)
                todo += self._take(vars(found), _OF_EVERY_MODULE)
                if isinstance(found, Coefficient):
                    self._coefficients.append(found)
            elif isinstance(found, TensorDictBase):
                todo += self._take(entries_of(found))
            elif isinstance(found, dict):
                todo += self._take(found)
            elif isinstance(found, list | tuple):
                todo += found
            elif hasattr(found, "__dict__") and type(found).__module__.split(".")[0] not in _NOT_FOLLOWED:
                todo += self._take(vars(found))

    def _take(self, held: dict[Any, Any], left_out: frozenset[str] = frozenset()) -> list[Any]:
        """Watches what stands in ``held``; what is to be followed."""
        simple = [name for name, value in held.items() if name not in left_out and isinstance(value, _SIMPLE)]
        others = [name for name, value in held.items() if name not in left_out and not isinstance(value, _SIMPLE)]
        if simple:
            self._settings.append((held, itemgetter(*simple)))
            self.names.append((id(held), simple))
        if others and len(others) == len(held):
            self._containers.append(held)
        watched = [name for name in others if name not in _CONTAINERS and isinstance(held[name], _WATCHED)]
        if watched and len(others) < len(held):
            self._attributes += [(held, name) for name in watched]
        return [held[name] for name in others]

    def _objects(self) -> list[Any]:
        """Tensors, modules and tensordicts where they are held."""
        found = [*chain.from_iterable(map(dict.values, self._containers))]
        found += [held[name] for held, name in self._attributes]
        return found

    def is_current(self, more: Sequence[Tensor]) -> bool:
        """True if the same objects hold the same tensors, in the same memory."""
        now = self._objects()
        same = more is self._more and len(now) == len(self._held) and all(map(is_, now, self._held))
        return same and pointers(self.tensors) == self._memory

    def has_hooks(self) -> bool:
        """True if a module has hooks that run besides its ``forward``."""
        return any(not _is_harmless(hook) for hooks in self._hooks if hooks for hook in hooks.values())

    def settings(self) -> list[Any]:
        """The values on which Python code may branch."""
        flags = [coefficient.is_on for coefficient in self._coefficients]
        flags += [parameter.requires_grad for parameter in self._leaves]
        return [flags, *[get(held) for held, get in self._settings]]


def _is_harmless(hook: Any) -> bool:
    """True if a graph may omit the hook: a check of the data, made by the caller, or TorchRL's warning."""
    return hook is updater_warning or getattr(hook, "only_checks", False)
