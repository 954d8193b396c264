"""The device that a setting names, and how PyTorch uses the processor."""

from __future__ import annotations

import re

import torch

from torchrl_reg.training.errors import ConfigError, require


def named_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:<n>``.

    Raises:
        ConfigError: another name, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # torch names more devices, some without numbers (meta).
    require(bool(re.fullmatch(r"cpu|cuda(:\d+)?", name)), "run.device", "auto, cpu, cuda or cuda:<n>", name)
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= count:
        shown = f"only {count}" if count else "none"
        raise ConfigError(f"run.device={name} needs a CUDA device, got {shown} on this machine.")
    # With its index, as tensors report it: "cuda" and "cuda:0" compare unequal.
    return torch.empty(0, device=name).device


def set_up_cpu(threads: int) -> None:
    """Has PyTorch use ``threads`` threads, and take subnormal numbers for zero in the calling one.

    Adam's moments of units that are off decay into subnormal numbers and stay there; a processor takes ten times as
    long for those, and a step of Adam with it.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
