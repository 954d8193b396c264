"""Random streams of a run, and restored generators."""

from __future__ import annotations

import random

import numpy as np
import torch

from torchrl_reg.lab.run.streams import forked_generators, seed_global_generators, stream_seed


def test_streams_are_stable_distinct_and_fit_vector_environments():
    # Numbers of another process: nothing here hashes as Python does.
    assert (stream_seed(0, "actor", 0), stream_seed(7, "network", 12)) == (1067768517, 430979058)
    names = [(s, stream, f) for s in (0, 1) for stream in ("actor", "replay") for f in (0, 1)]
    seeds = {stream_seed(*name) for name in names}
    assert len(seeds) == len(names)
    assert all(0 <= seed < 2**31 - 2**16 for seed in seeds)


def test_forked_generators_leave_all_three_generators_as_they_were():
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()

    seed_global_generators(5)
    expected = draw()
    seed_global_generators(5)
    for _ in range(2):
        with forked_generators(1):
            first = draw()
        with forked_generators(1):
            assert draw() == first != expected
    assert draw() == expected
