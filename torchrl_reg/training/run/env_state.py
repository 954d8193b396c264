"""What a checkpoint holds of the environments: where each of them is, and what is carried from batch to batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_reg.collectors import LeanCollector
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
        is_transparent: whether the environments can be restored. Where they cannot, the caller ends all episodes
            at every checkpoint, so that a resumed run starts them where an uninterrupted one does.
        is_restored: False once loaded environments are not where they were (they compute differently on this machine);
            the caller resets them.
    """

    def __init__(self, collector: Collector | LeanCollector) -> None:
        self._collector = collector
        self._layers = _layers(collector.env)  # a closed collector has none
        self._part = restorable_part(collector.env)
        self.is_transparent = self._part is not None
        self.is_restored = True

    @property
    def count(self) -> int:
        return max(1, self._collector.env.batch_size.numel())

    def restart(self, seed: int) -> None:
        """Begins a new episode everywhere, from ``seed``."""
        self._collector.env.set_seed(seed)
        self._collector.reset()

    def state_dict(self) -> dict[str, Any]:
        """Of a closed collector only what its transforms have learnt."""
        state: dict[str, Any] = {"layers": [layer.state_dict() for layer in self._layers]}
        if not isinstance(self._collector, LeanCollector) and self._collector.track_traj_ids:
            state["trajectories"] = self._collector._traj_pool.state_dict()
        if self._part is not None and not self._collector.closed:
            state["environments"] = pack_arrays(self._part.snapshot())
            state["carried"] = pack_tensordict(self._carried)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        collector = self._collector
        for layer, learnt in zip(self._layers, state["layers"], strict=True):
            layer.load_state_dict(learnt)
        if not isinstance(collector, LeanCollector) and collector.track_traj_ids:
            collector._traj_pool.load_state_dict(state["trajectories"])
        if self._part is not None and "environments" in state:
            self.is_restored = self._part.restore(unpack_arrays(state["environments"]))
            self._carry(unpack_tensordict(state["carried"]))

    @property
    def _carried(self) -> TensorDictBase:
        collector = self._collector
        return collector.carried if isinstance(collector, LeanCollector) else collector._carrier

    def _carry(self, carried: TensorDictBase) -> None:
        collector = self._collector
        if isinstance(collector, LeanCollector):
            collector.carried = carried
            return
        fresh = collector._carrier
        for key, value in fresh.items(include_nested=True, leaves_only=True):
            carried.set(key, carried.get(key).to(value.device))
        collector._carrier = carried if fresh.device is None else carried.to(fresh.device)
