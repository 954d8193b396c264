"""Recipes in this process, by their command line: ``"m_dqn algo.tau=0.5"``."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import BaseFileLock

from torchrl_reg.lab import read_metrics, recipe, strip_wall_clock
from torchrl_reg.lab.cli.command_line import as_config
from torchrl_reg.lab.cli.overrides import quoted_overrides
from torchrl_reg.lab.run import metrics, run_folder
from torchrl_reg.lab.run.lock import acquire
from torchrl_reg.lab.run.run_folder import RunFolder
from torchrl_reg.lab.run.settings import validate

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.append(str(RECIPES))  # as of a script: its studies lie beside it
#: Presets of q_learning.py, as if each were a recipe; those that also have a separate recipe are compared with it.
METHODS = {path.stem for path in (RECIPES / "conf/method").glob("*.yaml")} - {"m_dqn", "m_iqn"}


def _script(words: str) -> tuple[str, list[str]]:
    """The recipe that ``words`` name, and their overrides."""
    name, *overrides = words.split()
    return ("q_learning", [f"+method={name}", *overrides]) if name in METHODS else (name, overrides)


@pytest.fixture
def load() -> Callable[[str], ModuleType]:
    """``load("m_dqn")`` -> the recipe as a module."""

    def module(name: str) -> ModuleType:
        name = f"recipes_{_script(name)[0]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name.removeprefix('recipes_')}.py")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return module


@pytest.fixture
def composed(load) -> Callable[[str], Any]:
    """``composed("m_dqn env=atari")`` -> its settings, which are valid."""

    def settings(words: str) -> Any:
        script, overrides = _script(words)
        module = load(script)
        # Anew, as Hydra composes what was stored last under this name, by a benchmark say.
        line: Any = getattr(recipe(module.Config, module.train), "__self__")  # noqa: B009
        words = quoted_overrides([*overrides, "run.dir=unused"], module.Config)
        found = as_config(line._composed(words), module.Config)
        validate(found)
        return found

    return settings


@pytest.fixture
def start(load, monkeypatch, tmp_path) -> Callable[..., list[dict]]:
    """``start("m_dqn algo.tau=0.5")`` runs a recipe and returns its rows without times."""

    def run(words: str, folder: str = "run") -> list[dict]:
        script, overrides = _script(words)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", f"run.dir={tmp_path / folder}", *overrides])
        load(script).main()
        return [strip_wall_clock(row) for row in read_metrics(tmp_path / folder / "metrics.jsonl")]

    return run


@pytest.fixture
def refused(start, monkeypatch, capfd) -> Callable[[str], str]:
    """``refused("m_dqn algo.tau=-1")`` -> the one sentence with which the recipe ends, before it makes a folder."""

    def accept(*_: Any) -> None:
        raise AssertionError("these settings were not refused")

    def sentence(words: str) -> str:
        monkeypatch.setattr(RunFolder, "open", accept)
        with pytest.raises(SystemExit) as stop:
            start(words)
        (line,) = capfd.readouterr().err.splitlines()
        assert stop.value.code == 1 and "Traceback" not in line
        return line

    return sentence


@pytest.fixture
def kill(start, monkeypatch, tmp_path) -> Callable[..., None]:
    """``kill(words, folder, rows=3)`` ends a run where a checkpoint and then ``rows`` more rows have been written."""

    class Killed(BaseException):
        pass

    def run(words: str, folder: str, rows: int) -> None:
        checkpoints, written = tmp_path / folder / "checkpoints", metrics.append
        before, after = {*checkpoints.glob("checkpoint-*")}, []

        def append(path: Path, line: bytes) -> None:
            if {*checkpoints.glob("checkpoint-*")} - before:
                after.append(line)
            if len(after) > rows:
                raise Killed
            written(path, line)

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(metrics, "append", append)
            start(words, folder)
        gc.collect()  # of the run, whose lock goes with its process in real life
        assert not (tmp_path / folder / "done.json").exists()

    return run


@pytest.fixture
def stop(start, monkeypatch, tmp_path) -> Callable[..., str]:
    """``stop(words, folder, SIGINT, rows=3)`` sends the signal while the third row is written; what is said then.

    ``times=2`` sends it again, late enough to count as a second wish.
    """

    def run(words: str, folder: str, number: int, rows: int, times: int = 1) -> str:
        written, held, append, said = [], [], metrics.append, tmp_path / "stderr.txt"

        def keep(path: Path) -> BaseFileLock:
            held.append(acquire(path))
            return held[-1]

        def interrupt(path: Path, line: bytes) -> None:
            append(path, line)
            written.append(line)
            if len(written) == rows:
                os.kill(os.getpid(), number)
                for _ in range(times - 1):
                    time.sleep(0.6)
                    os.kill(os.getpid(), number)

        with monkeypatch.context() as patched, said.open("w") as stderr, pytest.raises(SystemExit) as stopped:
            patched.setattr(metrics, "append", interrupt)
            patched.setattr(sys, "stderr", stderr)
            patched.setattr(run_folder, "acquire", keep)
            start(words, folder)
        assert stopped.value.code == 128 + number
        for each, handler in before.items():  # left as they are in a process about to end
            signal.signal(each, handler)
        for lock in held:  # it goes with its process in real life
            lock.release()
        return " ".join(said.read_text().split())

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    return run
