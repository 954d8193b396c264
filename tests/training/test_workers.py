"""Workers take turns, meet for what is computed together, and keep their random generators apart."""

from __future__ import annotations

import random
import signal
import threading
from typing import Any

import numpy as np
import pytest
import torch

from torchrl_reg.training.seeds.workers import Worker, Workers, current_worker


def here() -> Worker:
    worker = current_worker()
    assert worker is not None
    return worker


def total(numbers: list[int]) -> list[int]:
    return [sum(numbers)] * len(numbers)


def test_what_they_meet_for_is_computed_once_of_all_in_order() -> None:
    seen: list[list[int]] = []

    def jointly(given: list[int]) -> list[int]:
        seen.append(given)
        return [10 * number for number in given]

    def task(number: int) -> list[int]:
        return [here().barrier("tens", number + step, jointly) for step in range(2)]

    workers = Workers([lambda n=n: task(n) for n in (1, 5, 7)]).run()
    assert [worker.outcome for worker in workers] == [[10, 20], [50, 60], [70, 80]]
    assert seen == [[1, 5, 7], [2, 6, 8]]


def test_one_runs_at_a_time() -> None:
    running: list[int] = []

    def task() -> None:
        for _ in range(50):
            running.append(1)
            assert len(running) == 1
            sum(range(1000))
            running.pop()
            here().barrier("turn", 1, total)

    assert all(worker.error is None for worker in Workers([task] * 4).run())


def test_those_left_go_on_when_others_are_over() -> None:
    def task(steps: int) -> list[int]:
        return [here().barrier("count", 1, total) for _ in range(steps)]

    workers = Workers([lambda n=n: task(n) for n in (1, 3, 2)]).run()
    assert [worker.outcome for worker in workers] == [[3], [3, 2, 1], [3, 2]]


def test_brief_meetings_come_first_so_that_all_come_to_the_others() -> None:
    def task(brief: int) -> list[int]:
        found = [here().barrier("step", 1, total, brief=True) for _ in range(brief)]
        return [*found, here().barrier("batch", 1, total)]

    workers = Workers([lambda n=n: task(n) for n in (0, 3, 1)]).run()
    assert [worker.outcome for worker in workers] == [[3], [2, 1, 1, 3], [2, 3]]


def test_different_kinds_are_answered_one_after_the_other() -> None:
    workers = Workers([lambda k=k: here().barrier(k, 1, total) for k in ("a", "b", "b")]).run()
    assert [worker.outcome for worker in workers] == [1, 2, 2]


def test_an_error_is_of_the_lane_that_made_it() -> None:
    def task(number: int) -> int:
        if number == 1:
            raise KeyError("mine")
        return here().barrier("count", 1, total)

    workers = Workers([lambda n=n: task(n) for n in range(3)]).run()
    assert [worker.outcome for worker in workers] == [2, None, 2]
    assert isinstance(workers[1].error, KeyError)


def test_an_error_of_what_is_computed_together_is_of_all() -> None:
    def broken(_: list[int]) -> list[int]:
        raise RuntimeError("together")

    workers = Workers([lambda: here().barrier("broken", 1, broken)] * 2).run()
    assert [str(worker.error) for worker in workers] == ["together", "together"]


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), np.random.random(), random.random()


def seeded_draws(seed: int, steps: int, meet: Any) -> list[tuple[float, float, float]]:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    found = []
    for _ in range(steps):
        found.append(draws())
        meet()
    return found


def test_each_has_generators_of_its_own() -> None:
    alone = [seeded_draws(seed, 5, lambda: None) for seed in range(3)]
    torch.manual_seed(77)
    np.random.seed(77)
    random.seed(77)
    expected, after = draws(), (torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate())

    def meet() -> None:
        here().barrier("turn", 1, total)

    workers = Workers([lambda s=s: seeded_draws(s, 5, meet) for s in range(3)]).run()
    assert [worker.outcome for worker in workers] == alone
    # And those of the caller are as they were.
    assert torch.equal(torch.get_rng_state(), after[0]) and random.getstate() == after[2]
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], after[1]["state"]["key"])
    assert expected != draws()


def test_after_brief_meetings_pythons_generator_is_taken_where_it_is_asked_for() -> None:
    def task(seed: int) -> list[float]:
        random.seed(seed)
        found = []
        for _ in range(4):
            found.append(random.random())
            here().barrier("turn", 1, total, brief=True)
            here().take_python_generator()
        return found

    workers = Workers([lambda s=s: task(s) for s in range(3)]).run()
    for seed, worker in enumerate(workers):
        generator = random.Random(seed)
        assert worker.outcome == [generator.random() for _ in range(4)]


def test_a_signal_ends_every_worker() -> None:
    closed: list[int] = []

    def task(number: int) -> None:
        try:
            while True:
                here().barrier("turn", 1, total)
        finally:
            closed.append(number)

    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            Workers([lambda n=n: task(n) for n in range(3)]).run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(closed) == [0, 1, 2]


def test_outside_there_is_no_worker() -> None:
    assert current_worker() is None
    assert Workers([lambda: current_worker() is not None]).run()[0].outcome
