"""Several seeds of one configuration trained in one process (``run.seeds``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchrl_reg.training.errors import user_sentence
from torchrl_reg.training.seeds.lanes import Lane, Lanes


def train_seeds(train: Callable[[Any], Path], configs: Sequence[Any]) -> None:
    """Calls ``train(config)`` for every seed, several side by side; one that fails does not stop the others.

    Raises:
        Exception: that of the first seed that failed, once all have finished.
    """
    if len(configs) == 1:
        train(configs[0])
        return
    failed = [lane for lane in Lanes([_task(train, config) for config in configs]).run() if lane.error is not None]
    for lane in failed[1:]:
        print(f"run.seed={configs[lane.number].run.seed}: {_said(lane)}", file=sys.stderr, flush=True)
    if failed:
        assert failed[0].error is not None
        raise failed[0].error


def _task(train: Callable[[Any], Path], config: Any) -> Callable[[], Path]:
    return lambda: train(config)


def _said(lane: Lane) -> str:
    assert lane.error is not None
    return user_sentence(lane.error) or repr(lane.error)
