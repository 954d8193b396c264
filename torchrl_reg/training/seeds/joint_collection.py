"""Batches collected for all lanes in one pass, if their policies can be stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from tensordict import TensorDictBase

from torchrl_reg.collectors import LeanCollector
from torchrl_reg.collectors.joint import Draws, JointCollector, drawing, is_stacked
from torchrl_reg.training.loop.collection import AnyCollector
from torchrl_reg.training.loop.replay import split_rows
from torchrl_reg.training.seeds.lanes import Lane


class _Share(NamedTuple):
    """What one lane contributes."""

    collector: LeanCollector
    draws: Draws


def joint_batches(lane: Lane, collector: AnyCollector) -> Iterator[TensorDictBase]:
    """The batches of ``collector``, collected together with those of the other lanes once that is possible."""
    together = lane.shared("collection", lambda: _Together(lane))
    batches, draw = iter(collector), None
    while True:
        batch = None
        if isinstance(collector, LeanCollector) and together.may_collect(collector):
            state = torch.get_rng_state()
            draw = draw or drawing(collector)
            batch = lane.meet("collection", _Share(collector, draw()), together)
            if batch is None:
                torch.set_rng_state(state)
        else:
            lane.take_python_generator()  # environments may draw from it
        yield next(batches) if batch is None else batch


class _Together:
    """Collects for the lanes that meet; keeps their joint collector as long as they stay the same."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane  # any lane will do: each knows how many there are
        self._refused = False
        self._joint: JointCollector | None = None

    def may_collect(self, collector: LeanCollector) -> bool:
        """Whether it is worth waiting for the others."""
        if self._refused or self._lane.is_alone:
            return False
        if self._joint is not None:
            return True
        try:
            return is_stacked(collector)
        except ValueError:
            self._refused = True
            return False

    def __call__(self, shares: list[_Share]) -> Sequence[TensorDictBase | None]:
        """The batch of each lane; None for those that must collect on their own."""
        collectors = [share.collector for share in shares]
        if len(shares) < self._lane.companions:
            return [None] * len(shares)
        if self._joint is None or self._joint.collectors != collectors or not self._joint.is_current():
            try:
                self._joint = JointCollector(collectors)
            except ValueError:
                self._refused = True
                return [None] * len(shares)
        whole = self._joint.batches([share.draws for share in shares])
        return split_rows(whole, collectors[0].num_envs)
