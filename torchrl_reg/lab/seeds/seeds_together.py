"""Several seeds of one configuration trained in one process (``run.seeds``)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchrl_reg.lab.errors import user_sentence
from torchrl_reg.lab.seeds.workers import Workers


def train_seeds(train: Callable[[Any], Path], configs: Sequence[Any]) -> None:
    """Calls ``train(config)`` for every seed, several in one process; one that fails does not stop the others.

    Raises:
        Exception: the error of the first seed that failed, once all have finished.
    """
    if len(configs) == 1:
        train(configs[0])
        return
    workers = Workers([partial(train, config) for config in configs]).run()
    failed = [(worker.error, worker.number) for worker in workers if worker.error is not None]
    for error, number in failed[1:]:
        message = user_sentence(error) or repr(error)
        print(f"run.seed={configs[number].run.seed}: {message}", file=sys.stderr, flush=True)
    if failed:
        raise failed[0][0]
