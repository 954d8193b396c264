"""Batches that are spread over the ranks of a process group: what is computed from all of them.

Every rank must make the same calls in the same order, as in any data-parallel program.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def in_process_group() -> bool:
    """True if ``torch.distributed`` has a process group: there, a batch is the batches of all ranks."""
    return dist.is_available() and dist.is_initialized()


def summed_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's ``tensor``, without gradient."""
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """The elementwise largest of every rank's ``tensor``, without gradient."""
    largest = tensor.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def gathered_from_ranks(tensor: Tensor, dim: int) -> Tensor:
    """Every rank's ``tensor``, all of one shape, joined along ``dim``; without gradient."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts, dim)
