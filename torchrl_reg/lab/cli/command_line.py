"""The command line of a recipe: Hydra underneath, one clear sentence for every user error."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import inspect
import json
import os
import shlex
import signal
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from torchrl_reg.lab.cli.help import help_text
from torchrl_reg.lab.cli.invocation import typed_words
from torchrl_reg.lab.cli.overrides import as_hydra_reads, default_folder, effective_overrides
from torchrl_reg.lab.cli.sentences import sentence
from torchrl_reg.lab.errors import Interrupted, stop_behind, user_sentence
from torchrl_reg.lab.run.run_folder import COMMAND, RunFolder, command
from torchrl_reg.lab.run.settings import RecipeConfig, validate
from torchrl_reg.lab.run.stop import STOP
from torchrl_reg.lab.seeds.seeds_together import train_seeds

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PATIENCE_SECONDS = 5.0
# Two signals this close are one wish: a wrapper (timeout, a shell) passes on what the whole group was sent.
_TOGETHER_SECONDS = 0.5
_PROMISE = b"\nstopping as soon as the run is saved; a second signal stops at once\n"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Stops on Ctrl-C, SIGTERM and SIGUSR1/2 unless something else (submitit) already handles them.

    A run that can be saved finishes its batch and writes a checkpoint first; a second signal stops it at once. Later
    ones change nothing while it stops; if that takes long, the next ends the process where it stands.
    """
    asked_at: float | None = None
    stopped_at: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at, stopped_at
        error, now = KeyboardInterrupt() if number == signal.SIGINT else Interrupted(number), time.monotonic()
        if stopped_at is not None:
            if now - stopped_at > _PATIENCE_SECONDS:
                os._exit(128 + number)
        elif STOP.waiting and asked_at is None:
            STOP.asked, asked_at = error, now
            with contextlib.suppress(OSError):  # not print(): the signal may have come in the middle of one
                os.write(2, _PROMISE)
        elif asked_at is None or now - asked_at > _TOGETHER_SECONDS:
            stopped_at = now
            raise error

    STOP.asked, STOP.words = None, None
    by_default = (signal.SIG_DFL, signal.default_int_handler)
    ours = {each: signal.getsignal(each) for each in _STOPPING if signal.getsignal(each) in by_default}
    for each in ours:
        signal.signal(each, stop)
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        if STOP.asked is not None and stopped_at is None:  # a run that has been saved
            stopped_at = time.monotonic()
        raise
    finally:
        STOP.asked = None
        for each, before in ours.items() if stopped_at is None else ():  # else the process is about to end
            signal.signal(each, before)


Train = Callable[[Any], Path]


def recipe(config_class: type[RecipeConfig], train: Train) -> Callable[[], None]:
    """Returns the ``main()`` of a recipe: ``@hydra.main`` around ``train``, ``config_class`` in Hydra's ConfigStore.

    ``train`` gets an instance of ``config_class``, whose ``defaults`` are a defaults list as in Hydra's manual; their
    groups are the folders of ``conf/`` beside the script. Hydra's options work as in its manual.

    Of ours are ``--help``, which shows every setting with its comment; the folder of a run, without ``run.dir``
    ``results/<recipe>/<env>/<settings>/seed=<seed>``, where a finished run is reported and not repeated; and errors.
    Exit codes: 0 done, 1 user error (one sentence on stderr), 130 or 128 + n stopped by a signal. A
    bug keeps its traceback, and with ``HYDRA_FULL_ERROR=1`` so does every other error.

    ``--check`` runs nothing: it reads a JSON list of lists of overrides from stdin and rejects the first bad one, so
    that a launcher can check all settings of a sweep in one process.
    """
    return _CommandLine(config_class, train).main


class _CommandLine:
    def __init__(self, config_class: type[RecipeConfig], train: Train) -> None:
        self.config_class, self.train, self.typed = config_class, train, typed_words()
        self.script = Path(inspect.getfile(train)).resolve()
        self.name, self.conf = self.script.stem, self.script.parent / "conf"
        self.full_errors, self.main_process = os.environ.get("HYDRA_FULL_ERROR") == "1", os.getpid()
        self.words: Sequence[str] = []
        store(self.name, config_class)

    def main(self) -> None:
        """Does what ``sys.argv`` says."""
        self.words = sys.argv[1:]
        with self._sentences():
            if self.words == ["--check"]:
                return self._check(json.load(sys.stdin))
            sys.argv[1:] = as_hydra_reads(self.words, self.config_class)
            if {"--help", "-h"} & set(self.words):
                composed = self._composed([word for word in sys.argv[1:] if not word.startswith("-")])
                return print(help_text(self.config_class, self.train, self.conf, composed))
            entry = hydra.main(version_base="1.3", config_path=str(self.conf), config_name=self.name)(self._job)
            try:
                os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors over several lines, and exits
                with stopped_by_signals():
                    entry()
            except (KeyboardInterrupt, Interrupted) as stop:
                said = STOP.words() if STOP.words else "stopped; the same command continues"
                print(f"\n{said}: {command()}", file=sys.stderr)
                sys.exit(128 + getattr(stop, "signal_number", signal.SIGINT))
            finally:
                os.environ["HYDRA_FULL_ERROR"] = "1" if self.full_errors else "0"
        return None

    def _job(self, composed: DictConfig) -> float | None:
        if os.getpid() != self.main_process and self.config_class.__module__ == "__main__":
            # A launcher pickles the classes of a script without what the script imports: here they are its own again.
            sys.path.insert(0, str(self.script.parent))  # where the script finds what lies beside it
            spec = typing.cast(Any, importlib.util.spec_from_file_location(self.name, self.script))
            script = sys.modules[self.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            self.config_class = getattr(script, self.config_class.__name__)
            self.train = getattr(script, self.train.__name__)
        with self._sentences():  # here, too, as the first error ends a sweep
            return self._run(composed)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Ends the process with one sentence for an error that a user can fix."""
        try:
            yield
        except Exception as error:
            if stop := stop_behind(error):
                raise stop from None
            said = user_sentence(error) or sentence(error, self.words, self.config_class, self.conf)
            # A launcher's worker must pass back the exception itself, not an exit code.
            if said is None or self.full_errors or os.getpid() != self.main_process:
                raise
            print(" ".join(said.split()), file=sys.stderr)
            sys.exit(1)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        begun = GlobalHydra().is_initialized()
        with nullcontext() if begun else hydra.initialize_config_dir(str(self.conf), version_base="1.3"):
            return hydra.compose(config_name=self.name, overrides=list(overrides))

    def _check(self, settings: Sequence[Sequence[str]]) -> None:
        """Composes and validates each list of overrides and prints its config as a line of JSON."""
        for self.words in settings:
            config = as_config(self._composed(as_hydra_reads(self.words, self.config_class)), self.config_class)
            validate(config)
            print(json.dumps(dataclasses.asdict(config), default=str))

    def _run(self, composed: DictConfig) -> float | None:
        """Trains one seed, or several side by side; returns what a search maximises, the mean over the seeds."""
        # As typed: read one by one, they are resolved in Hydra's own config, where ${algo.tau} is nothing.
        overrides = typing.cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
        shown = os.path.relpath(self.script) if self.script.is_relative_to(Path.cwd()) else str(self.script)
        words = self.words if HydraConfig.get().mode == RunMode.RUN else overrides
        COMMAND.set(shlex.join([*(self.typed or ("python", shown)), *words]))
        given = as_config(composed, self.config_class)
        validate(given)
        if given.run.seeds is None:
            given.run.dir = given.run.dir or str(self._folder(given, overrides))
            configs = [given]
        else:  # a folder each, so that any of them can also be continued on its own
            parent = Path(given.run.dir) if given.run.dir else self._folder(given, overrides).parent
            configs = [_of_seed(given, seed, parent) for seed in given.run.seeds]
        folders = [RunFolder(config) for config in configs]
        done = [folder for folder in folders if folder.is_done]
        if unfinished := [folder.config for folder in folders if folder not in done]:
            train_seeds(self.train, unfinished)
        for folder in done:
            folder.check_done()
            print(f"already finished: {folder.path}", flush=True)
        found = [_objective(config) for config in configs]
        return sum(found) / len(found) if None not in found else None  # type: ignore[arg-type]

    def _folder(self, given: Any, overrides: Sequence[str]) -> Path:
        """The default folder, named after the settings that differ from the defaults, however they were written."""
        env = HydraConfig.get().runtime.choices.get("env")
        as_typed = default_folder(self.name, env, overrides, given.run.seed)
        if as_typed.exists():  # from an earlier version, which used this name
            return as_typed
        words = effective_overrides(overrides, self._composed)
        return default_folder(self.name, env, words, given.run.seed)


def store(name: str, config_class: type[RecipeConfig]) -> None:
    """Puts ``config_class`` into Hydra's ConfigStore: its fields as schema, its ``defaults`` as the defaults list."""
    for kind in (config_class, *typing.get_type_hints(config_class).values()):
        if dataclasses.is_dataclass(kind) and kind.__module__ == "__main__":
            # A launcher pickles it without what the script imports, where these names would mean nothing.
            kind.__annotations__ |= {key: typing.get_type_hints(kind)[key] for key in kind.__annotations__}
    node = OmegaConf.structured(config_class)
    quiet = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    with open_dict(node):
        node.defaults = ["_self_", *config_class.defaults, *quiet]
        # No folders and logs of Hydra's.
        node.hydra = {"job": {"name": name}, "output_subdir": None, "run": {"dir": "."}}
        node.hydra.sweep = {"dir": f"results/multirun/{name}", "subdir": "."}
    ConfigStore.instance().store(name, node)


def as_config(composed: DictConfig, config_class: type[RecipeConfig]) -> Any:
    """``composed`` as an instance of ``config_class``, whose names and types OmegaConf checks.

    Raises:
        OmegaConfBaseException: a setting does not exist, has a wrong type, no value, or refers to nothing.
    """
    plain = OmegaConf.to_container(composed, resolve=True)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config_class), plain))


def _of_seed(config: Any, seed: int, parent: Path) -> Any:
    run = dataclasses.replace(config.run, seed=seed, seeds=None, dir=str(parent / f"seed={seed}"))
    return dataclasses.replace(copy.deepcopy(config), run=run)


def _objective(config: Any) -> float | None:
    """The column of the last evaluation that the recipe names; None of a study without one."""
    done = Path(config.run.dir) / "done.json"
    evaluation = json.loads(done.read_text())["evaluation"] if done.exists() else None
    return (evaluation or {}).get(config.objective)
