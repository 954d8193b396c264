"""Data collection for your own scripts: TorchRL's batches at a fraction of the cost."""

from torchrl_reg.collectors.lean import LeanCollector, lean_vector
from torchrl_reg.collectors.overlapped import OverlappedCollector
from torchrl_reg.collectors.plain_policy import plain_policy

__all__ = ["LeanCollector", "OverlappedCollector", "lean_vector", "plain_policy"]
