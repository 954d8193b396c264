"""Collection for your own script: TorchRL's batches at a fraction of their cost."""

from torchrl_reg.collectors.lean import LeanCollector, lean_vector
from torchrl_reg.collectors.plain_policy import plain_policy

__all__ = ["LeanCollector", "lean_vector", "plain_policy"]
