"""A function of tensors captured as a CUDA graph, which replays its kernels without Python.

A graph reads and writes the memory it was captured with: what it is given is copied there, and what it returns is
copied out. Its key and its comparison with eager PyTorch are those of :class:`~torchrl_reg.lab.learners.graph.Graphs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from torchrl_reg.lab.errors import UserError, first_line
from torchrl_reg.lab.learners.graph import NoGraphError, Results, results_of

#: Calls before the capture, in which libraries and compiled kernels set themselves up.
_WARM_UP = 3


class CudaGraph:
    """``function()``, which closes over the tensors it reads, captured.

    Args:
        held: tensors that it may change.
        given: tensors of this graph, into which each call copies what it is given.
        numbers: a vector of this graph, into which each call copies what it is handed.
        layout: filled by ``function``: the names of its entries, and which gradients there are.

    Raises:
        NoGraphError: ``function`` cannot be captured.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        held: Sequence[Tensor],
        given: Sequence[Tensor],
        numbers: Tensor,
        layout: list[Any],
    ) -> None:
        self._given, self._numbers = list(given), numbers
        self._last: list[float] | None = None  # which the vector holds
        try:
            self._replay, self._found = capture(function, numbers.device)
        except Exception as error:
            # Ending a capture that failed raises an error of its own, which hides the cause.
            cause = error.__context__ if isinstance(error.__context__, Exception) else error
            raise NoGraphError(f"it cannot be captured ({first_line(cause)})") from error
        self._layout = layout[-1]

    @staticmethod
    def trace_inputs(given: Sequence[Tensor], numbers: Sequence[float]) -> tuple[list[Tensor], Tensor]:
        """The memory that a graph reads, filled. Fused optimizers read their rates in float32."""
        vector = torch.tensor(numbers, dtype=torch.float32).to(given[0].device)
        return [tensor.clone() for tensor in given], vector

    def __call__(self, given: Sequence[Tensor], numbers: list[float]) -> Results:
        if numbers != self._last:
            self._last = numbers
            there = torch.tensor(numbers, dtype=torch.float32)
            # From new pinned memory: the host could overwrite old one before it is read.
            self._numbers.copy_(there.pin_memory() if self._numbers.is_cuda else there, non_blocking=True)
        torch._foreach_copy_(self._given, list(given), non_blocking=True)
        self._replay()
        found = [tensor.clone() for tensor in self._found]  # the next call writes there
        return results_of(found, self._layout)


def capture(function: Callable[[], list[Tensor]], device: torch.device) -> tuple[Callable[[], None], list[Tensor]]:
    """Captures ``function`` on ``device``; returns the replay, and the tensors of its results."""
    with torch.cuda.device(device):
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(before)
        mode = torch.cuda.get_sync_debug_mode()
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    function()
                # What waits for the device would break the capture, and the generator with it: it raises here.
                torch.cuda.set_sync_debug_mode("error")
                function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                found = function()
        finally:
            torch.cuda.set_stream(before)  # a capture that fails leaves its own
    return graph.replay, found


def require_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Raises UserError unless steps of ``optimizer`` on ``device`` can be captured."""
    if device.type != "cuda":
        raise UserError(f"run.cudagraphs=true needs a CUDA device, got run.device={device.type}.")
    if not optimizer.defaults.get("capturable", False):
        raise UserError("run.cudagraphs=true needs an optimizer built with capturable=True, got another.")
