"""Data collection for your own scripts: TorchRL's batches at a fraction of the cost."""

from torchrl_reg.collectors.fast import FastCollector, fast_vector, plain_policy
from torchrl_reg.collectors.overlapped import OverlappedCollector

LeanCollector, lean_vector = FastCollector, fast_vector  # as they were called in 0.1

__all__ = ["FastCollector", "OverlappedCollector", "fast_vector", "plain_policy"]
