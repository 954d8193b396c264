"""Parts of a checkpoint: where each environment is, what is carried from batch to batch, and random generators."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_reg.collectors import FastCollector, SplitCollector
from torchrl_reg.training.packing import pack_arrays, pack_tensordict, unpack_arrays, unpack_tensordict


def restorable_part(env: EnvBase) -> Any | None:
    """The part of ``env`` that has ``snapshot()`` and ``restore()`` (:class:`torchrl_reg.envs.Restorable`), or None.

    It is looked for in the environment that all transforms are around, then in the gymnasium environment inside it.
    """
    innermost = _layers(env)[-1]
    for part in (innermost, getattr(innermost, "_env", None)):
        if hasattr(type(part), "snapshot") and hasattr(type(part), "restore"):  # not what a wrapper forwards
            return part
    return None


def _layers(env: EnvBase) -> list[Any]:
    """The transforms around ``env``, outermost first, then the environment they are around."""
    layers = []
    while isinstance(env, TransformedEnv):
        layers.append(env.transform)
        env = env.base_env
    return [*layers, env]


class EnvironmentState:
    """The component of a checkpoint that stands for a collector and its environments.

    Args:
        collector: the collector of the run; its environments have been reset.

    Attributes:
        is_transparent: True if the environments can be restored. Where they cannot, the caller ends all episodes
            at every checkpoint, so that a resumed run starts them where an uninterrupted one does.
        is_restored: False once loaded environments are not where they were (they compute differently on this machine);
            the caller resets them.
    """

    def __init__(self, collector: Collector | FastCollector | SplitCollector) -> None:
        self._collector: Any = collector
        self._layers = _layers(collector.env)  # a closed collector has none
        # Environments in other processes are seeded there, and not stored.
        elsewhere = isinstance(collector, SplitCollector)
        self._seeded: Any = collector if elsewhere else collector.env
        self._part = None if elsewhere else restorable_part(collector.env)
        self.is_transparent = self._part is not None
        self.is_restored = True
        self.count = max(1, collector.env.batch_size.numel())

    def restart(self, seed: int) -> None:
        """Begins a new episode everywhere, from ``seed``."""
        self._seeded.set_seed(seed)
        self._collector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The state; of a closed collector only what its transforms have learnt."""
        collector = self._collector
        state: dict[str, Any] = {"layers": [layer.state_dict() for layer in self._layers]}
        if collector.track_traj_ids:
            state["trajectories"] = collector._traj_pool.state_dict()
        if self._part is not None and not collector.closed:
            state["environments"] = pack_arrays(self._part.snapshot())
            state["carried"] = pack_tensordict(collector._carrier)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        collector = self._collector
        for layer, learnt in zip(self._layers, state["layers"], strict=True):
            layer.load_state_dict(learnt)
        if collector.track_traj_ids:
            collector._traj_pool.load_state_dict(state["trajectories"])
        if self._part is None or "environments" not in state:
            return
        self.is_restored = self._part.restore(unpack_arrays(state["environments"]))
        carried, fresh = unpack_tensordict(state["carried"]), collector._carrier
        for key, value in fresh.items(include_nested=True, leaves_only=True):
            carried.set(key, carried.get(key).to(value.device))
        collector._carrier = carried if fresh.device is None else carried.to(fresh.device)


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
