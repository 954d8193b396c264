"""Named random streams of one seed. A run is seeded once; its checkpoints hold the generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

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
