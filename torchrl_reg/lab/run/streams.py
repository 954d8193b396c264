"""Named random streams of one seed, and the device a setting names."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from torchrl_reg.lab.errors import UserError, require

# Vectorized environments seed their i-th member with seed + i and ALE takes 31 bits.
_SEEDS = 2**31 - 2**16


def stream_seed(seed: int, *names: str | int) -> int:
    """``SHA-256(seed, *names)`` reduced to ``[0, 2^31 - 2^16)``, the same on every platform.

    >>> stream_seed(0, "actor", 0)
    1067768517
    """
    text = "/".join(str(part) for part in (seed, *names))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _SEEDS


def seed_global_generators(seed: int) -> None:
    """Seeds torch (every device), NumPy's legacy generator and :mod:`random`."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def forked_generators(seed: int) -> Iterator[None]:
    """Runs its body on generators seeded with ``seed``, then restores the ones that were there."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        seed_global_generators(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def named_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.

    Raises:
        UserError: another name, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # torch names more devices, some without numbers (meta).
    require(bool(re.fullmatch(r"cpu|cuda(:\d+)?", name)), "run.device", "auto, cpu, cuda or cuda:<n>", name)
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        shown = f"only {count}" if count else "none"
        raise UserError(f"run.device={name} needs a CUDA device, got {shown} on this machine.")
    # With its index, as tensors report it: "cuda" and "cuda:0" compare unequal.
    return torch.empty(0, device=name).device


def set_up_cpu(threads: int) -> None:
    """Has PyTorch use ``threads`` threads, and take subnormal numbers for zero in the calling one.

    Adam's moments of units that are off decay into subnormal numbers and stay there; a processor takes ten times as
    long for those, and a step of Adam with it.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
