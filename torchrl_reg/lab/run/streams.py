"""Named random streams of a seed, and the device named by a setting."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from torchrl_reg.lab.errors import UserError, require

# Vectorized environments seed their i-th member with seed + i, and ALE accepts 31 bits.
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
    """Seeds the global generators with ``seed`` inside the context and restores them after it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        seed_global_generators(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def named_device(name: str, setting: str = "run.device") -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.

    Raises:
        UserError: another name, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # torch accepts more names; tensors of some (meta) hold no numbers.
    require(bool(re.fullmatch(r"cpu|cuda(:\d+)?", name)), setting, "auto, cpu, cuda or cuda:<n>", name)
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        shown = f"only {count}" if count else "none"
        raise UserError(f"{setting}={name} needs a CUDA device, got {shown} on this machine.")
    # With its index, as tensors report it: "cuda" and "cuda:0" compare unequal.
    return torch.empty(0, device=name).device


def set_up_cpu(threads: int) -> None:
    """Sets the number of PyTorch's threads, and flushes subnormal numbers to zero in the calling thread.

    Adam's moments of inactive units decay to subnormal numbers, which slow its step down by a factor of ten.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
