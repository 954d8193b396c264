"""Workers run in turn, synchronize at barriers, and have separate random generators."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_reg.lab.seeds.workers import Worker, Workers, current_worker


def here() -> Worker:
    worker = current_worker()
    assert worker is not None
    return worker


def side_by_side(task: Callable[[Any], Any], arguments: Iterable[Any]) -> tuple[list[Any], list[Exception | None]]:
    """Outcomes and errors of all workers."""
    workers = Workers([partial(task, argument) for argument in arguments]).run()
    return [worker.outcome for worker in workers], [worker.error for worker in workers]


def total(numbers: list[int]) -> list[int]:
    return [sum(numbers)] * len(numbers)


def turn(reentrant: bool = False) -> None:
    here().barrier("turn", 1, total, reentrant=reentrant)


def test_what_they_meet_for_is_computed_once_of_all_in_order() -> None:
    seen: list[list[int]] = []

    def jointly(given: list[int]) -> list[int]:
        seen.append(given)
        return [10 * number for number in given]

    def task(number: int) -> list[int]:
        return [here().barrier("tens", number + step, jointly) for step in range(2)]

    assert side_by_side(task, (1, 5, 7))[0] == [[10, 20], [50, 60], [70, 80]]
    assert seen == [[1, 5, 7], [2, 6, 8]]


@pytest.mark.parametrize(
    ("kinds", "met"),
    [
        (["a", "aaa", "aa"], [[3], [3, 2, 1], [3, 2]]),  # those left go on when others are over
        (["a", "b", "b"], [[1], [2], [2]]),
        (["b", "sssb", "sb"], [[3], [2, 1, 1, 3], [2, 3]]),  # reentrant ones open first, so that all reach b
    ],
)
def test_how_many_meet(kinds: list[str], met: list[list[int]]) -> None:
    assert side_by_side(lambda path: [here().barrier(k, 1, total, reentrant=k == "s") for k in path], kinds)[0] == met


def test_a_last_barrier_waits_for_those_that_are_still_under_way() -> None:
    def task(kinds: str) -> list[int]:
        return [here().barrier(kind, 1, total, last=kind == "z") for kind in kinds]

    assert side_by_side(task, ["z", "abz", "bz"])[0] == [[3], [1, 2, 3], [2, 3]]


def test_an_error_is_of_the_worker_that_made_it_or_of_all_who_met() -> None:
    def broken(_: list[int]) -> list[int]:
        raise RuntimeError("together")

    def task(number: int) -> int:
        if number == 1:
            raise KeyError("mine")
        met = here().barrier("count", 1, total)
        return here().barrier("broken", 1, broken) if number > 2 else met

    outcomes, errors = side_by_side(task, range(5))
    assert outcomes == [4, None, 4, None, None]
    assert [repr(error) for error in errors if error] == ["KeyError('mine')", *["RuntimeError('together')"] * 2]


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.random(), random.random()


def seed_all(seed: int) -> None:
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)


def seeded_draws(seed: int, meet: Callable[[], Any]) -> list[tuple[float, float, float]]:
    seed_all(seed)
    return [(draws(), meet())[0] for _ in range(5)]


def reentrant_turn() -> None:
    """Python's generator is taken where it is asked for."""
    turn(reentrant=True)
    here().take_python_generator()


@pytest.mark.parametrize("meet", [turn, reentrant_turn])
def test_each_has_generators_of_its_own_and_so_has_the_caller(meet: Callable[[], None]) -> None:
    alone = [seeded_draws(seed, lambda: None) for seed in range(3)]
    seed_all(77)
    expected = [draws(), draws()]
    seed_all(77)
    assert draws() == expected[0]
    assert side_by_side(partial(seeded_draws, meet=meet), range(3))[0] == alone
    assert draws() == expected[1]


def test_a_signal_ends_every_worker() -> None:
    closed: list[int] = []

    def task(number: int) -> None:
        try:
            while True:
                turn()
        finally:
            closed.append(number)

    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            side_by_side(task, range(3))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(closed) == [0, 1, 2] and current_worker() is None
