"""One gradient step as a function: minibatch in, detached scalars out, no host synchronization."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.compat import backward, has_step_hooks
from torchrl_reg.lab.errors import first_line, require
from torchrl_reg.lab.learners.cuda_graph import CudaGraph, require_capturable
from torchrl_reg.lab.learners.frame_stack import FrameStackStorage
from torchrl_reg.lab.learners.graph import TOLERANCE, ExtraInputs, GraphKind, Graphs, NoGraphError, Results
from torchrl_reg.lab.learners.optimizers import CapturedStep, FlatRAdam, TracedAdam
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.seeds.batched_update import batched_step
from torchrl_reg.lab.seeds.workers import current_worker

Update: TypeAlias = Callable[[TensorDictBase], MutableMapping[str, Tensor]]
#: Minibatch in, entries of the loss out; the gradients of their sum are then in ``parameter.grad``.
Gradients: TypeAlias = Callable[[TensorDictBase], Mapping[str, Tensor]]
#: Called with whether updates are compiled; again with False if compiling fails.
Report: TypeAlias = Callable[[bool], None]
Call = TypeVar("Call", bound=Callable[..., Any])
#: Number of updates beyond which compiling saves more time than it takes.
MANY_UPDATES = 50_000


def make_update(
    loss: LossModule,
    optimizer: Optimizer,
    target: TargetNetUpdater | None = None,
    *,
    replay: TensorDictReplayBuffer | None = None,
    max_grad_norm: float | None = None,
    device: torch.device | str = "cpu",
    compile: bool | None = False,
    updates: int | None = None,
    bf16: bool = False,
    cudagraphs: bool = False,
    wants_diagnostics: Callable[[], bool] | None = None,
    report: Callable[[bool], None] = lambda _: None,
) -> Update:
    """Returns ``update(minibatch)``: sum the losses, backpropagate, step, track, reprioritize.

    The sum runs over the entries of ``loss(minibatch)`` whose name starts with ``loss``; entries with
    one element are returned detached, the others dropped. With ``max_grad_norm`` the global gradient
    norm is clipped, and its value before clipping is returned as ``grad_norm``. A ``replay`` with a
    prioritized sampler gets the priorities that the loss wrote into the minibatch.

    Where ``wants_diagnostics()`` is false, a loss that has ``diagnostics`` leaves them out of that update.

    ``compile`` makes one compiled graph of the losses, their gradients, the clip, the step of a fused Adam and a
    :class:`~torchrl_reg.objectives.PolyakTargetUpdate`, equal to eager PyTorch up to the order of summation; other
    optimizers and updaters step outside. What has no graph is eager, with a message. None: if that pays off over
    ``updates`` updates, see :func:`worth_compiling`. ``report(compiled)`` gets the choice. With ``bf16`` networks
    compute in bfloat16 (autocast), and targets, losses, parameters and their gradients stay float32. ``cudagraphs``
    captures the losses, their gradients, the clip, the step of any optimizer and a
    :class:`~torchrl_reg.objectives.PolyakTargetUpdate` as one CUDA graph, compiled or not; what cannot be captured is
    eager, with a message. Learning rates are not frozen: a value assigned to ``optimizer.param_groups[i]["lr"]``, e.g.
    by a scheduler, takes effect with the next update, compiled, captured or not.

    Raises:
        UserError: ``max_grad_norm`` is not positive; ``cudagraphs`` without a CUDA device, or
            with an optimizer that was not built with ``capturable=True``.
    """
    device = torch.device(device)
    if max_grad_norm is not None:
        require(max_grad_norm > 0, "max_grad_norm", "positive", max_grad_norm)
    prioritized = replay is not None and isinstance(replay.sampler, PrioritizedSampler)
    priority_key = loss.tensor_keys.priority if prioritized else None
    if compile is None and not worth_compiling(updates, device):
        compile = False
    if cudagraphs:
        require_capturable(optimizer, device)
    report(compile is not False)
    parts = _Parts(loss, optimizer, max_grad_norm, priority_key, bf16, report)
    step, target = _step(parts, target, device, compile=compile, cudagraphs=cudagraphs)
    if not getattr(loss, "diagnostics", False):
        wants_diagnostics = None  # nothing to leave out

    def update(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        if device.type != "cpu" and (minibatch.device is None or minibatch.device.type != device.type):
            minibatch = minibatch.to(device, non_blocking=True)
        if wants_diagnostics is not None and wants_diagnostics() != loss.diagnostics:
            loss.diagnostics = not loss.diagnostics
        scalars = step(minibatch)
        if target is not None:
            target.step()
        if priority_key is not None:
            assert replay is not None
            priority, index = scalars.pop("priority"), minibatch.get("index")
            if isinstance(replay.storage, FrameStackStorage):
                index = replay.storage.rows_returned(index)
            # A diverged run is stopped by its log row, which names what is not finite, and not by the sampler.
            replay.update_priority(index, priority.nan_to_num(nan=0.0, posinf=0.0))
        return scalars

    return update


@dataclass(frozen=True)
class _Parts:
    """What a step is made of, as :func:`make_update` gets it; with ``polyak``, a target that the step tracks itself."""

    loss: Any
    optimizer: Optimizer
    max_grad_norm: float | None
    priority_key: NestedKey | None
    bf16: bool
    report: Report
    polyak: Any = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _step(
    parts: _Parts,
    target: TargetNetUpdater | None,
    device: torch.device,
    *,
    compile: bool | None,
    cudagraphs: bool,
) -> tuple[Update, TargetNetUpdater | None]:
    """The step, and the ``target`` that is left to update after it.

    ``compile=None``: compile; fall back on eager PyTorch after any error, with a message.
    """
    # On other devices the optimizer's counts lie on the device, and reading them would wait for it.
    one_graph = compile is not False and device.type == "cpu"
    one_graph = one_graph and current_worker() is None and TracedAdam.fits(parts.optimizer)
    if not (cudagraphs or one_graph):
        return _gradient_step(parts, compile=compile), target
    if hasattr(target, "traced_step"):  # the others count on the host
        parts, target = replace(parts, polyak=target), None
    if cudagraphs:
        return _captured(_gradient_step(parts, compile=compile), parts), target
    return _one_graph(_gradient_step(parts, compile=False), parts, required=bool(compile)), target


def _gradient_step(parts: _Parts, *, compile: bool | None) -> Update:
    """Gradients, their clip and the optimizer's step; of several seeds in one process batched."""
    loss, optimizer, priority_key = parts.loss, parts.optimizer, parts.priority_key
    make_gradients = partial(_gradients, compile=compile, bf16=parts.bf16, report=parts.report)
    gradients, step_optimizer = make_gradients(loss, parts.parameters, priority_key), OptimizerStep(optimizer)

    def step(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        scalars = _scalars(gradients(minibatch))
        norm = step_optimizer(parts.max_grad_norm)
        if norm is not None:
            scalars["grad_norm"] = norm
        # Returned, because a graph works on a copy of the minibatch.
        return scalars | _priority(minibatch, priority_key)

    worker = current_worker()
    # Under autocast the fractions' dtype is known only inside the pass, so they cannot be drawn ahead for all seeds.
    lowered = parts.bf16 and getattr(getattr(loss, "head", None), "draws", False)
    if worker is None or priority_key is not None or lowered:
        return step
    return batched_step(worker, step, make_gradients, loss, parts.parameters, optimizer, parts.max_grad_norm)


# ------------------------------------------------------------ gradients


def worth_compiling(updates: int | None, device: torch.device) -> bool:
    """True if a compiled graph saves more time over ``updates`` updates than compiling takes (5 to 60 s).

    So it is on a CPU from :data:`MANY_UPDATES` on, where an update of a small network saves .5 ms or more. GPUs have
    not been measured.
    """
    return device.type == "cpu" and updates is not None and updates >= MANY_UPDATES


def _gradients(
    loss: Any,
    parameters: Sequence[nn.Parameter],
    priority_key: NestedKey | None = None,
    *,
    compile: bool | None,
    bf16: bool,
    report: Report = lambda _: None,
) -> Gradients:
    """Forward, then ``backward()``; as one graph unless ``compile`` is False (None: eager after any error)."""

    def eager(minibatch: TensorDictBase) -> Mapping[str, Tensor]:
        with _precision(bf16, minibatch):
            losses = dict(loss(minibatch).items())
        for parameter in parameters:
            parameter.grad = None
        backward(total_loss(losses.items()))
        return losses

    if compile is False:
        return eager

    def function(minibatch: TensorDictBase, _: Any) -> Results:
        losses, gradients = _losses_and_gradients(loss, parameters, minibatch, bf16)
        return losses | _priority(minibatch, priority_key), gradients

    def expected(minibatch: TensorDictBase) -> Results:
        losses = {name: value.detach() for name, value in eager(minibatch).items()}
        return losses | _priority(minibatch, priority_key), [parameter.grad for parameter in parameters]

    graphs = Graphs(function, expected, loss, ExtraInputs(), tolerance=_tolerance(bf16))

    def in_graph(minibatch: TensorDictBase) -> Mapping[str, Tensor]:
        losses, gradients = graphs(minibatch)
        if priority_key is not None:
            minibatch.set(priority_key, losses.pop("priority"))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return losses

    return _where_possible(in_graph, eager, loss, report=report, required=bool(compile))


def _losses_and_gradients(
    loss: Any, parameters: Sequence[nn.Parameter], minibatch: TensorDictBase, bf16: bool
) -> tuple[dict[str, Tensor], list[Tensor | None]]:
    with _precision(bf16, minibatch):
        losses = dict(loss(minibatch).items())
    learnt = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = iter(torch.autograd.grad(total_loss(losses.items()), learnt, allow_unused=True))
    found = [next(gradients) if parameter.requires_grad else None for parameter in parameters]
    aligned = [None if gradient is None else gradient.contiguous() for gradient in found]
    return {name: value.detach() for name, value in losses.items()}, aligned


def _where_possible(
    in_graph: Call,
    eager: Call,
    loss: Any,
    *,
    required: bool,
    message: str = "run.compile: updates are not compiled",
    report: Report = lambda _: None,
) -> Call:
    """``in_graph``, or ``eager`` from the first call on that has no graph, with a message."""
    failures: type[Exception] = NoGraphError if required else Exception
    check = getattr(loss, "check_data", lambda _: None)  # a graph has no checks of its data
    failed = False

    def call(minibatch: TensorDictBase) -> Any:
        nonlocal failed
        if not failed:
            check(minibatch)
            try:
                return in_graph(minibatch)
            except failures as error:
                failed = True
                report(False)
                say(f"{message}: {first_line(error)}", to_stderr=True)
        return eager(minibatch)

    return call  # type: ignore[return-value]


def _tolerance(bf16: bool) -> float:
    return 100 * TOLERANCE if bf16 else TOLERANCE


# ------------------------------------------------------------ a whole update as one graph


def _one_graph(eager: Update, parts: _Parts, *, required: bool) -> Update:
    """``eager``, an update with a fused Adam, as one graph: losses, gradients, their clip, the step, the target's."""
    adam = TracedAdam(parts.optimizer)

    def function(minibatch: TensorDictBase, numbers: Sequence[Tensor]) -> Results:
        losses, gradients = _losses_and_gradients(parts.loss, parts.parameters, minibatch, parts.bf16)
        scalars = _scalars(losses)
        with torch.no_grad():
            if parts.max_grad_norm is not None:
                gradients, scalars["grad_norm"] = _clipped(gradients, parts.max_grad_norm)
            adam.step(gradients, numbers)
            if parts.polyak is not None:
                parts.polyak.traced_step(numbers[-1])
        return scalars | _priority(minibatch, parts.priority_key), []

    whole = _and_target(eager, parts.polyak)

    def checked(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        adam.check()
        return whole(minibatch)

    graphs = _graphs_of(function, checked, parts, adam)

    def in_graph(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        if not TracedAdam.fits(parts.optimizer):  # a hook, say
            return whole(minibatch)
        return graphs(minibatch)[0]

    return _where_possible(in_graph, whole, parts.loss, report=parts.report, required=required)


def _captured(eager: Update, parts: _Parts) -> Update:
    """``eager``, and the step of the target, as a CUDA graph."""
    captured_step = CapturedStep(parts.optimizer)

    def function(minibatch: TensorDictBase, numbers: Sequence[Tensor]) -> Results:
        with captured_step.rates(numbers):
            scalars = eager(minibatch)
        if parts.polyak is not None:
            parts.polyak.traced_step(numbers[-1])
        for parameter in parts.parameters:
            parameter.grad = None  # it is memory of this graph, which the next one does not write
        return dict(scalars), []

    whole = _and_target(eager, parts.polyak)
    graphs = _graphs_of(function, whole, parts, captured_step, kind=CudaGraph)

    def in_graph(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        if has_step_hooks(parts.optimizer):
            raise NoGraphError("the optimizer has hooks, or a scheduler of PyTorch, which count its steps on the host")
        return graphs(minibatch)[0]

    message = "run.cudagraphs: updates are not captured"
    return _where_possible(in_graph, whole, parts.loss, message=message, required=True)


def _and_target(step: Update, polyak: Any) -> Update:
    """``step``, then that of ``polyak``, if there is one."""

    def update(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        scalars = step(minibatch)
        polyak.step()
        return scalars

    return step if polyak is None else update


def _graphs_of(
    function: Callable[[TensorDictBase, Sequence[Tensor]], Results],
    eager: Update,
    parts: _Parts,
    step: TracedAdam | CapturedStep,
    *,
    kind: GraphKind | None = None,
) -> Graphs:
    """Of a whole update, which is handed the numbers of the optimizer's step, then the rate of the target's."""
    polyak = parts.polyak
    return Graphs(
        function,
        lambda minibatch: (dict(eager(minibatch)), []),
        parts.loss,
        ExtraInputs(step.tensors, lambda: step.numbers() + ([] if polyak is None else [polyak.rate]), step.settings),
        stepped=parts.parameters,
        tolerance=_tolerance(parts.bf16),
        kind=kind,
    )


def _scalars(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of one element, detached."""
    return {n: v.detach() if v.ndim == 0 else v.detach().reshape(()) for n, v in losses.items() if v.numel() == 1}


def _priority(minibatch: TensorDictBase, key: NestedKey | None) -> dict[str, Tensor]:
    """The priorities that the loss wrote into the minibatch; empty without a ``key``."""
    return {} if key is None else {"priority": minibatch.get(key)}


def _clipped(gradients: Sequence[Tensor | None], max_norm: float) -> tuple[list[Tensor | None], Tensor]:
    """The gradients clipped to the norm ``max_norm``, as by ``clip_grad_norm_``, and their norm before clipping."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients if gradient is not None]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    return [None if gradient is None else gradient * factor for gradient in gradients], norm


def _precision(bf16: bool, minibatch: TensorDictBase) -> AbstractContextManager[Any]:
    """In bfloat16 the networks compute; what the losses make of their outputs is float32, as are all parameters."""
    if not bf16:
        return nullcontext()
    return torch.autocast("cpu" if minibatch.device is None else minibatch.device.type, torch.bfloat16)


def total_loss(losses: Iterable[tuple[str, Tensor]]) -> Tensor:
    """The sum over all elements of the entries whose name starts with ``loss`` (stacked losses have several each).

    Raises:
        ValueError: there is no such entry.
    """
    terms = [value for name, value in losses if name.startswith("loss")]
    if not terms:
        raise ValueError("loss must return an entry whose name starts with 'loss', got none.")
    total = sum(terms[1:], terms[0])
    return total.sum() if total.ndim else total


# ------------------------------------------------------------ the optimizer's step


class OptimizerStep:
    """``optimizer.step()``, bit for bit; of a fused Adam its kernel alone, without hooks, profiler and grouping.

    Given ``max_grad_norm``, the gradients are clipped before, and their norm is returned: by ``clip_grad_norm_``, or by
    a :class:`FlatRAdam` in its one vector.

    The state stays in the optimizer, under its usual names: ``state_dict``, ``load_state_dict`` and learning rates
    assigned to ``param_groups`` work as always. Any other optimizer, one with hooks or a PyTorch scheduler attached,
    and a step at which some parameter has no gradient go through ``optimizer.step()`` itself.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._state: Any = None  # the one whose tensors are held
        self._held: list[list[list[Tensor]]] = []  # of each group: parameters, two moments, counts

    def __call__(self, max_grad_norm: float | None = None) -> Tensor | None:
        groups, norm = self.optimizer.param_groups, None
        if max_grad_norm is not None:
            if type(self.optimizer) is FlatRAdam and len(groups) == 1 and not has_step_hooks(self.optimizer):
                return self.optimizer.clipped_step(max_grad_norm)
            norm = nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], max_grad_norm)
        gradients = [[parameter.grad for parameter in group["params"]] for group in groups]
        if not self._is_held(gradients):
            self.optimizer.step()
            self._hold()
            return norm
        with torch.no_grad():
            for group, grads, (params, exp_avgs, exp_avg_sqs, steps) in zip(groups, gradients, self._held, strict=True):
                torch._foreach_add_(steps, 1)
                kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
                kernel(
                    params,
                    grads,
                    exp_avgs,
                    exp_avg_sqs,
                    [],
                    steps,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=group["maximize"],
                )
        return norm

    def _is_held(self, gradients: list[list[Any]]) -> bool:
        optimizer = self.optimizer
        same = self._state is optimizer.state and [len(h[0]) for h in self._held] == list(map(len, gradients))
        complete = same and all(grad is not None for grads in gradients for grad in grads)
        tensors = any(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
        return complete and not tensors and not has_step_hooks(optimizer)

    def _hold(self) -> None:
        """Takes the kernel's arguments from the optimizer's state, if one call of it can step each group."""
        self._state, self._held = self.optimizer.state, []
        groups = self.optimizer.param_groups
        if type(self.optimizer) in (Adam, AdamW) and all(map(self._is_plain, groups)):
            for group in groups:
                states = [self._state[parameter] for parameter in group["params"]]
                rows = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
                self._held.append([list(group["params"]), *rows])

    def _is_plain(self, group: dict[str, Any]) -> bool:
        params = group["params"]
        numbers = [group[name] for name in ("lr", "eps", "weight_decay")] + list(group["betas"])
        one_kind = len({(parameter.device, parameter.dtype) for parameter in params}) == 1
        stepped = all(self._state.get(parameter) for parameter in params)
        plain = bool(group["fused"]) and not group["amsgrad"] and one_kind and stepped
        return plain and all(isinstance(number, float | int) for number in numbers)
