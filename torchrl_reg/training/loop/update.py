"""One gradient step as a function: minibatch in, detached scalars out, no host synchronization."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule
from torch import Tensor
from torchrl.data import TensorDictReplayBuffer
from torchrl.data.replay_buffers import PrioritizedSampler
from torchrl.objectives import LossModule
from torchrl.objectives.utils import TargetNetUpdater

from torchrl_reg.training.errors import ConfigError, require
from torchrl_reg.training.loop.frame_stack import FrameStackStorage
from torchrl_reg.training.loop.gradients import made_gradients, worth_compiling
from torchrl_reg.training.loop.optimizer_step import OptimizerStep
from torchrl_reg.training.seeds.batched_step import batched_step
from torchrl_reg.training.seeds.workers import current_worker

Update = Callable[[TensorDictBase], MutableMapping[str, Tensor]]


def make_update(
    loss: LossModule,
    optimizer: torch.optim.Optimizer,
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
) -> Update:
    """Returns ``update(minibatch)``: sum the losses, backpropagate, step, track, reprioritize.

    The sum runs over the entries of ``loss(minibatch)`` whose name starts with ``loss``; entries with
    one element are returned detached, the others dropped. With ``max_grad_norm`` the global gradient
    norm is clipped, and its value before clipping is returned as ``grad_norm``. A ``replay`` with a
    prioritized sampler gets the priorities that the loss wrote into the minibatch.

    Where ``wants_diagnostics()`` is false, a loss that has ``diagnostics`` leaves them out of that update.

    ``compile`` compiles the losses and their gradients as one graph, equal up to the order of summation; the
    optimizer's step, one kernel when it is fused, stays outside. None: if that pays off over ``updates`` updates, see
    :func:`~torchrl_reg.training.loop.gradients.worth_compiling`. With ``bf16`` networks compute in bfloat16
    (autocast), and targets, losses, parameters and their gradients stay float32. ``cudagraphs`` captures everything
    except the target update and the priorities: both depend on host counters, which a graph would freeze. Learning
    rates are not frozen: a value assigned to ``optimizer.param_groups[i]["lr"]``, e.g. by a scheduler, takes effect
    with the next update, captured or not.

    Raises:
        ConfigError: ``max_grad_norm`` is not positive; ``cudagraphs`` without a CUDA device, or
            with an optimizer that was not built with ``capturable=True``.
    """
    device = torch.device(device)
    if max_grad_norm is not None:
        require(max_grad_norm > 0, "max_grad_norm", "positive", max_grad_norm)
    priority_key = loss.tensor_keys.priority if _is_prioritized(replay) else None
    if compile is None and not worth_compiling(loss, updates, device):
        compile = False
    step: Update = _gradient_step(loss, optimizer, max_grad_norm, priority_key, compile=compile, bf16=bf16)
    if cudagraphs:
        step = _as_cuda_graph(step, optimizer, device)

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
            minibatch.set(priority_key, scalars.pop("priority"))
            if isinstance(replay.storage, FrameStackStorage):
                minibatch.set("index", replay.storage.rows_returned(minibatch.get("index")))
            replay.update_tensordict_priority(minibatch)
        return scalars

    return update


def _gradient_step(
    loss: LossModule,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float | None,
    priority_key: str | tuple[str, ...] | None,
    *,
    compile: bool | None,
    bf16: bool = False,
) -> Update:
    """``compile=None`` compiles, but nobody asked for it."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = made_gradients(loss, parameters, compile, bf16=bf16)
    step_optimizer = OptimizerStep(optimizer)

    def step(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        losses = gradients(minibatch)
        scalars = {
            n: v.detach() if v.ndim == 0 else v.detach().reshape(()) for n, v in losses.items() if v.numel() == 1
        }
        if max_grad_norm is not None:
            scalars["grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        step_optimizer()
        if priority_key is not None:
            # Returned, because a CUDA graph works on a copy of the minibatch.
            scalars["priority"] = minibatch.get(priority_key)
        return scalars

    worker = current_worker()
    if worker is None or priority_key is not None:
        return step
    how: dict[str, Any] = {"max_grad_norm": max_grad_norm, "compile": compile, "bf16": bf16}
    return batched_step(worker, step, loss=loss, parameters=parameters, optimizer=optimizer, **how)


def _as_cuda_graph(step: Update, optimizer: torch.optim.Optimizer, device: torch.device) -> Update:
    if device.type != "cuda":
        raise ConfigError(f"run.cudagraphs=true needs a CUDA device, got run.device={device.type}.")
    if not optimizer.defaults.get("capturable", False):
        raise ConfigError("run.cudagraphs=true needs an optimizer built with capturable=True, got another.")
    graph = CudaGraphModule(lambda data: TensorDict(step(data)), in_keys=[], out_keys=[], warmup=5, device=device)
    # A graph reads the memory it was captured with, and bakes in Python numbers. Fused optimizers read float32.
    rates = [
        torch.as_tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
        for group in optimizer.param_groups
    ]

    def replayed(minibatch: TensorDictBase) -> MutableMapping[str, Tensor]:
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            if group["lr"] is not rate:  # annealed, or loaded from a checkpoint
                group["lr"] = rate.fill_(float(group["lr"]))
        # A copy, because capture replaces the entries of its input and the loss adds one.
        return graph(minibatch.copy())

    return replayed


def _is_prioritized(replay: TensorDictReplayBuffer | None) -> bool:
    return replay is not None and isinstance(replay.sampler, PrioritizedSampler)
