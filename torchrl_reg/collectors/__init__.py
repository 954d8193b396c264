"""Data collection for your own scripts: TorchRL's batches at a fraction of the cost."""

from torchrl_reg.collectors.fast import FastCollector, fast_vector
from torchrl_reg.collectors.overlapped import OverlappedCollector
from torchrl_reg.modules.acting import plain_policy

__all__ = ["FastCollector", "OverlappedCollector", "fast_vector", "plain_policy"]
