"""Training several seeds of one configuration in one process (``run.seeds``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torchrl_reg.lab.errors import user_sentence
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.seeds.workers import Workers


def train_seeds(train: Callable[[Any], Path], configs: Sequence[Any]) -> None:
    """Calls ``train(config)`` for all seeds concurrently; a failed one does not stop the others.

    Raises:
        Exception: that of the first failed seed, after all have finished.
    """
    if len(configs) == 1:
        train(configs[0])
        return
    workers = Workers([partial(train, config) for config in configs]).run()
    failed = [(worker.error, worker.number) for worker in workers if worker.error is not None]
    for error, number in failed[1:]:
        message = user_sentence(error) or repr(error)
        say(f"run.seed={configs[number].run.seed}: {message}", to_stderr=True)
    if failed:
        raise failed[0][0]
