"""The states of all random generators of a run, which a checkpoint holds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torchrl_reg.training.packing import pack_arrays, unpack_arrays


class GeneratorStates:
    """The component of a checkpoint that stands for the global generators and for ``named`` ones.

    A run that resumes with another number of CUDA devices leaves the generators of these as they are.
    """

    def __init__(self, **named: torch.Generator) -> None:
        self._named = named

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": pack_arrays(np.random.get_state(legacy=False)),
            "python": random.getstate(),
            "named": {name: generator.get_state() for name, generator in self._named.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        np.random.set_state(unpack_arrays(state["numpy"]))
        random.setstate(state["python"])
        for name, generator in self._named.items():
            generator.set_state(state["named"][name])
