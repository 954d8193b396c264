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
from omegaconf.errors import InterpolationResolutionError

from torchrl_reg.lab.cli.help import help_text
from torchrl_reg.lab.cli.invocation import script_folder, typed_words
from torchrl_reg.lab.cli.overrides import (
    default_folder,
    effective_overrides,
    options_first,
    quoted_overrides,
    runs_of_sweep,
)
from torchrl_reg.lab.cli.sentences import sentence, with_setting
from torchrl_reg.lab.documents import read_json
from torchrl_reg.lab.errors import Interrupted, UserError, stop_behind, user_sentence
from torchrl_reg.lab.printable import say
from torchrl_reg.lab.run.run_folder import COMMAND, RunFolder, command
from torchrl_reg.lab.run.settings import RecipeConfig, validate
from torchrl_reg.lab.run.stop import STOP
from torchrl_reg.lab.seeds.seeds_together import train_seeds

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_MAX_STOP_SECONDS = 5.0
# Two signals this close count as one: timeout and shells send a second copy of what the process group was sent.
_SAME_SIGNAL_SECONDS = 0.5
_STOP_NOTICE = b"\nstopping as soon as the run is saved; a second signal stops at once\n"


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Stops on Ctrl-C, SIGTERM and SIGUSR1/2 unless something else (submitit) already handles them.

    A run that can be saved first finishes its batch and writes a checkpoint; a second signal stops it at once. Further
    signals are ignored for 5 s; after that, the next one kills the process.
    """
    requested_at: float | None = None
    stopped_at: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal requested_at, stopped_at
        error, now = KeyboardInterrupt() if number == signal.SIGINT else Interrupted(number), time.monotonic()
        if stopped_at is not None:
            if now - stopped_at > _MAX_STOP_SECONDS:
                os._exit(128 + number)
        elif STOP.waiting and requested_at is None:
            STOP.requested, requested_at = error, now
            with contextlib.suppress(OSError):  # print() is not reentrant
                os.write(2, _STOP_NOTICE)
        elif requested_at is None or now - requested_at > _SAME_SIGNAL_SECONDS:
            stopped_at = now
            raise error

    STOP.requested, STOP.notice = None, None
    default = (signal.SIG_DFL, signal.default_int_handler)
    replaced = {number: signal.getsignal(number) for number in _STOPPING if signal.getsignal(number) in default}
    for number in replaced:
        signal.signal(number, stop)
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        if STOP.requested is not None and stopped_at is None:  # the run was saved
            stopped_at = time.monotonic()
        raise
    finally:
        STOP.requested = None
        for number, handler in replaced.items() if stopped_at is None else ():  # else the process is about to exit
            signal.signal(number, handler)


Train = Callable[[Any], Path]


def recipe(config_class: type[RecipeConfig], train: Train) -> Callable[[], None]:
    """Returns the ``main()`` of a recipe: ``@hydra.main`` around ``train``, ``config_class`` in Hydra's ConfigStore.

    ``train`` gets an instance of ``config_class``, whose ``defaults`` are a Hydra defaults list; its groups are the
    folders of ``conf/`` beside the script, or of ours where it has none. Hydra's options work as in its manual.

    Added to Hydra: ``--help`` shows every setting with its comment; a run's default folder is
    ``results/<recipe>/<env>/<settings>/seed=<seed>``, and a run finished there is reported, not repeated; a user error
    is one sentence on stderr. Exit codes: 0 done, 1 user error, 130 or 128 + n stopped by signal n. A bug keeps its
    traceback; with ``HYDRA_FULL_ERROR=1`` every error does.

    ``--check`` reads a JSON list of lists of overrides from stdin and rejects the first invalid one without running
    anything, so that a launcher checks a whole sweep in one process.
    """
    return _CommandLine(config_class, train).main


class _CommandLine:
    def __init__(self, config_class: type[RecipeConfig], train: Train) -> None:
        self.config_class, self.train, self.typed = config_class, train, typed_words()
        self.script = Path(inspect.getfile(train)).resolve()
        self.name, self.conf = self.script.stem, self.script.parent / "conf"
        if not self.conf.is_dir():  # a copy of a recipe, alone
            self.conf = script_folder("recipes") / "conf"
        self.full_errors, self.main_process = os.environ.get("HYDRA_FULL_ERROR") == "1", os.getpid()
        self.words: Sequence[str] = []
        store(self.name, config_class)

    def main(self) -> None:
        """Runs the command line in ``sys.argv``."""
        self.words = sys.argv[1:]
        with self._sentences():
            if self.words == ["--check"]:
                return self._check(_command_lines(sys.stdin.read()))
            sys.argv[1:] = options_first(quoted_overrides(self.words, self.config_class))
            if {"--help", "-h"} & set(self.words):
                composed = self._composed([word for word in sys.argv[1:] if not word.startswith("-")])
                return say(help_text(self.config_class, self.train, self.conf, composed))
            self._check_sweep(runs_of_sweep(sys.argv[1:]))
            entry = hydra.main(version_base="1.3", config_path=str(self.conf), config_name=self.name)(self._job)
            try:
                os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints a multi-line message and exits
                with stop_on_signals():
                    entry()
            except (KeyboardInterrupt, Interrupted) as stop:
                notice = STOP.notice() if STOP.notice else "stopped; the same command continues"
                say(f"\n{notice}: {command()}", to_stderr=True)
                sys.exit(128 + getattr(stop, "signal_number", signal.SIGINT))
            finally:
                os.environ["HYDRA_FULL_ERROR"] = "1" if self.full_errors else "0"
        return None

    def _job(self, composed: DictConfig) -> float | None:
        if os.getpid() != self.main_process and self.config_class.__module__ == "__main__":
            # A launcher pickles the classes of __main__ without the script's imports, so the script is imported again.
            sys.path.insert(0, str(self.script.parent))  # for modules beside the script
            spec = typing.cast(Any, importlib.util.spec_from_file_location(self.name, self.script))
            script = sys.modules[self.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            self.config_class = getattr(script, self.config_class.__name__)
            self.train = getattr(script, self.train.__name__)
        with self._sentences():  # also inside a job: the first error ends a sweep
            return self._run(composed)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Exits with one sentence on stderr if the error is one that a user can fix."""
        try:
            yield
        except Exception as error:
            if stop := stop_behind(error):
                raise stop from None
            message = user_sentence(error)
            if message is None:
                message = sentence(error, self.words, self.config_class, self.conf)
            elif not isinstance(error, UserError):
                message = with_setting(message, self.config_class)
            # A launcher's worker must return the exception itself, not an exit code.
            if message is None or self.full_errors or os.getpid() != self.main_process:
                raise
            say(" ".join(message.split()), to_stderr=True)
            sys.exit(1)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        initialized = GlobalHydra().is_initialized()
        with nullcontext() if initialized else hydra.initialize_config_dir(str(self.conf), version_base="1.3"):
            return hydra.compose(config_name=self.name, overrides=list(overrides))

    def _check(self, settings: Sequence[Sequence[str]]) -> None:
        """Composes and validates each list of overrides and prints its config as a line of JSON."""
        for self.words in settings:
            config = as_config(self._composed(quoted_overrides(self.words, self.config_class)), self.config_class)
            validate(config)
            print(json.dumps(dataclasses.asdict(config), default=str))

    def _check_sweep(self, runs: Sequence[Sequence[str]]) -> None:
        """Rejects a multirun in which a later run would fail, before the first one trains for hours."""
        folders: set[str] = set()
        for overrides in runs:
            try:
                composed = self._composed(overrides)
                config = as_config(composed, self.config_class)
            except InterpolationResolutionError:  # ${hydra:job.num}, say, which has a value inside a job alone
                continue
            validate(config)
            written: Any = OmegaConf.to_container(composed.run, resolve=False)
            if not config.run.dir or "${now:" in str(written["dir"]):  # the runs start at other times
                continue
            for seed in config.run.seeds or [None]:
                folder = config.run.dir if seed is None else f"{config.run.dir}/seed={seed}"
                if folder in folders:
                    raise UserError(f"run.dir must be another folder for each run of -m, got {folder} for several.")
                folders.add(folder)

    def _run(self, composed: DictConfig) -> float | None:
        """Trains one seed, or several together; returns the mean objective over the seeds, for a Hydra sweeper."""
        # resolve=False: Hydra's own config, where these lie, cannot resolve ${algo.tau}.
        overrides = typing.cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
        script = os.path.relpath(self.script) if self.script.is_relative_to(Path.cwd()) else str(self.script)
        words = self.words if HydraConfig.get().mode == RunMode.RUN else overrides
        COMMAND.set(shlex.join([*(self.typed or ("python", script)), *words]))
        config = as_config(composed, self.config_class)
        validate(config)
        if config.run.dir:  # a shell expands ~ only at the start of a word, not after run.dir=
            config.run.dir = os.path.expanduser(config.run.dir)
        if config.run.seeds is None:
            config.run.dir = config.run.dir or str(self._folder(config, overrides))
            configs = [config]
        else:  # one folder each, so that each can be resumed alone
            parent = Path(config.run.dir) if config.run.dir else self._folder(config, overrides).parent
            configs = [_with_seed(config, seed, parent) for seed in config.run.seeds]
        folders = [RunFolder(config) for config in configs]
        done = [folder for folder in folders if folder.is_done]
        for folder in done:  # before the others train for hours
            folder.check_done()
        if unfinished := [folder.config for folder in folders if folder not in done]:
            train_seeds(self.train, unfinished)
        for folder in done:
            say(f"already finished: {folder.path}")
        objectives = [value for value in map(_objective, configs) if value is not None]
        return sum(objectives) / len(objectives) if len(objectives) == len(configs) else None

    def _folder(self, config: RecipeConfig, overrides: Sequence[str]) -> Path:
        """The default folder, named after the settings that differ from the defaults."""
        env = HydraConfig.get().runtime.choices.get("env")
        return default_folder(self.name, env, effective_overrides(overrides, self._composed), config.run.seed)


def store(name: str, config_class: type[RecipeConfig]) -> None:
    """Puts ``config_class`` into Hydra's ConfigStore: its fields as schema, its ``defaults`` as the defaults list."""
    for kind in (config_class, *typing.get_type_hints(config_class).values()):
        if dataclasses.is_dataclass(kind) and kind.__module__ == "__main__":
            # A launcher pickles it without the script's imports, so that annotations kept as strings would not resolve.
            kind.__annotations__ |= {key: typing.get_type_hints(kind)[key] for key in kind.__annotations__}
    node = OmegaConf.structured(config_class)
    no_logging = [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    with open_dict(node):
        node.defaults = ["_self_", *config_class.defaults, *no_logging]
        # Without these, Hydra writes folders and logs of its own.
        node.hydra = {"job": {"name": name}, "output_subdir": None, "run": {"dir": "."}}
        node.hydra.sweep = {"dir": f"results/multirun/{name}", "subdir": "."}
    ConfigStore.instance().store(name, node)


def as_config(composed: DictConfig, config_class: type[RecipeConfig]) -> Any:
    """``composed`` as an instance of ``config_class``, whose names and types OmegaConf checks.

    Raises:
        OmegaConfBaseException: a setting does not exist, has a wrong type, no value, or refers to nothing.
    """
    resolved = OmegaConf.to_container(composed, resolve=True)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config_class), resolved))


def _with_seed(config: RecipeConfig, seed: int, parent: Path) -> RecipeConfig:
    run = dataclasses.replace(config.run, seed=seed, seeds=None, dir=str(parent / f"seed={seed}"))
    return dataclasses.replace(copy.deepcopy(config), run=run)


def _objective(config: RecipeConfig) -> float | None:
    """``config.objective`` of the last evaluation; None for a study without evaluations."""
    evaluation = (read_json(Path(str(config.run.dir)) / "done.json") or {}).get("evaluation")
    return (evaluation or {}).get(config.objective)


def _command_lines(text: str) -> list[Any]:
    """Those of ``--check``, as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise UserError(f"--check must be given a JSON list of command lines on stdin, got {text[:40]!r}.")
    return found
