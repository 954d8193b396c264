"""One thread a test process: the networks here are small, and two test processes share the machine."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what tests start in processes of their own
torch.set_num_threads(1)
