"""Runs the tiny recipe in separate processes, which can be killed; torch is imported once."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

RECIPE_FOLDER = Path(__file__).parent / "recipe"
sys.path.insert(0, str(RECIPE_FOLDER))  # children inherit it

SCHEDULE = ["run.log_every_frames=64", "run.evaluate_every_frames=400", "run.eval_episodes=3"]


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_dqn", "torchrl_reg.lab.run.curves", "pandas"])
    return context


@pytest.fixture
def start(processes: ForkServerContext, tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """``start(*arguments)`` begins the tiny recipe in ``tmp_path`` and returns its process."""
    from child import run_tiny_recipe

    running: list[BaseProcess] = []

    def begin(*arguments: str) -> BaseProcess:
        process = processes.Process(target=run_tiny_recipe, args=([*SCHEDULE, *arguments], str(tmp_path)))
        process.start()
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.join()


@pytest.fixture
def finish(start: Callable[..., BaseProcess]) -> Callable[..., int | None]:
    """``finish(*arguments)`` runs the tiny recipe to its end and returns the exit code."""

    def run(*arguments: str) -> int | None:
        process = start(*arguments)
        process.join(60)
        return process.exitcode

    return run


@pytest.fixture
def kill_when() -> Callable[[BaseProcess, Callable[[], bool]], None]:
    """``kill_when(process, condition)``: SIGKILL as soon as the condition holds."""

    def kill(process: BaseProcess, condition: Callable[[], bool]) -> None:
        while process.is_alive():
            if condition():
                process.kill()
                process.join()
                return
            time.sleep(0.002)
        raise AssertionError(f"the process ended by itself with exit code {process.exitcode}")

    return kill
