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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, cast

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchrl_reg.lab.cli.help import help_text, options, unknown_choice
from torchrl_reg.lab.cli.invocation import typed_words
from torchrl_reg.lab.cli.overrides import default_folder, read_words, readable, telling
from torchrl_reg.lab.cli.typed_config import first_line, plain_defaults, typed
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
    """Returns the ``main()`` of a recipe: reads the command line and calls ``train(config)``.

    ``config`` is an instance of ``config_class``. Without ``run.dir`` the folder is
    ``results/<recipe>/<env>/<settings>/seed=<seed>``; a finished run is reported, not repeated.
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
        # Hydra composes plain values; `typed` knows the types, and says in one sentence what does not fit.
        plain, store = plain_defaults(config_class), ConfigStore.instance().store
        defaults: list[Any] = ["_self_", *({group: c} for group, c in config_class.groups.items())]
        if config_class.elsewhere:  # behind the recipe's numbers, and before what the environment says
            for choice in set(options(self.conf, "env")) - {config_class.groups["env"]}:
                folder, _, leaf = f"{self.name}_elsewhere/{choice}".rpartition("/")
                store(leaf, config_class.elsewhere, group=folder, package="_global_")
            defaults.insert(1, {f"optional {self.name}_elsewhere": "${env}"})
        defaults += [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
        own = {"job": {"name": self.name}, "output_subdir": None, "run": {"dir": "."}}
        own["sweep"] = {"dir": f"results/multirun/{self.name}", "subdir": "."}  # no folders and logs of Hydra's
        store(self.name, {**plain, "defaults": defaults, "hydra": own})
        for group, values in config_class.elsewhere.items():
            plain[group] = {**plain[group], **values}
        store(f"{self.name}_of_a_paper", {**plain, "defaults": defaults, "hydra": own})

    def _start(self, words: Sequence[str]) -> str:
        """What Hydra starts from: a paper's preset knows nothing of the settings searched for on CartPole."""
        return f"{self.name}_of_a_paper" if any(word.startswith("+paper=") for word in words) else self.name

    def main(self) -> None:
        """Does what ``sys.argv`` says."""
        with self._sentences():
            if sys.argv[1:] == ["--check"]:
                return self._check(json.load(sys.stdin))
            sys.argv[1:] = readable(sys.argv[1:], self.config_class)
            asked = read_words(sys.argv[1:], self.config_class, self.conf)
            if asked.help:
                return print(help_text(self.config_class, self.train, self.conf, self._composed(asked.overrides)))
            start = self._start(asked.overrides)
            entry = hydra.main(version_base="1.3", config_path=str(self.conf), config_name=start)(self._job)
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
            spec = cast(Any, importlib.util.spec_from_file_location(self.name, self.script))
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
            sentence = user_sentence(error) or self._explained(error)
            # A launcher's worker must pass back the exception itself, not an exit code.
            if sentence is None or self.full_errors or os.getpid() != self.main_process:
                raise
            print(" ".join(sentence.split()), file=sys.stderr)
            sys.exit(1)

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        begun = GlobalHydra().is_initialized()
        with nullcontext() if begun else hydra.initialize_config_dir(str(self.conf), version_base="1.3"):
            return hydra.compose(config_name=self._start(overrides), overrides=list(overrides))

    def _explained(self, error: Exception) -> str | None:
        """The sentence for an error of Hydra's or of a YAML file; None for anything else."""
        for found in (error, error.__cause__, error.__context__):
            if isinstance(found, yaml.YAMLError):
                mark, problem = getattr(found, "problem_mark", None), getattr(found, "problem", None)
                where = f"{mark.name}, line {mark.line + 1}" if mark is not None else "A file of settings"
                return f"{where} is not YAML: {problem or first_line(found)}."
        if isinstance(error, MissingConfigException):
            return unknown_choice(self.conf, str(error.missing_cfg_file or ""), error.options or ())
        return f"{first_line(error)}." if isinstance(error, HydraException | OmegaConfBaseException) else None

    def _check(self, settings: Sequence[Sequence[str]]) -> None:
        """Composes and validates each list of overrides and prints its config as a line of JSON."""
        for words in settings:
            overrides = read_words(readable(words, self.config_class), self.config_class, self.conf).overrides
            config = typed(self._composed(overrides), self.config_class)
            validate(config)
            print(json.dumps(dataclasses.asdict(config), default=str))

    def _run(self, composed: DictConfig) -> float | None:
        """Trains one seed, or several side by side; returns what a search maximises, the mean over the seeds."""
        # As typed: read one by one, they are resolved in Hydra's own config, where ${algo.tau} is nothing.
        overrides = cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
        shown = os.path.relpath(self.script) if self.script.is_relative_to(Path.cwd()) else str(self.script)
        COMMAND.set(shlex.join([*(self.typed or ("python", shown)), *overrides]))
        given = typed(composed, self.config_class)
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
        words = telling(overrides, lambda some: dataclasses.asdict(typed(self._composed(some), self.config_class)))
        return default_folder(self.name, env, words, given.run.seed)


def _of_seed(config: Any, seed: int, parent: Path) -> Any:
    run = dataclasses.replace(config.run, seed=seed, seeds=None, dir=str(parent / f"seed={seed}"))
    return dataclasses.replace(copy.deepcopy(config), run=run)


def _objective(config: Any) -> float | None:
    """The column of the last evaluation that the recipe names; None of a study without one."""
    done = Path(config.run.dir) / "done.json"
    evaluation = json.loads(done.read_text())["evaluation"] if done.exists() else None
    return (evaluation or {}).get(config.objective)
