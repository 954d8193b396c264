"""The command line of a recipe: Hydra underneath, one clear sentence for every user error.

A recipe ends with ``recipe(Config, train)()``. Its schema and defaults are the dataclass; YAML files
below ``conf/`` beside the recipe only override it, in the groups the config names.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from torchrl_reg.training.cli.config_errors import (
    check_flags,
    check_interpolations,
    check_removals,
    explain,
    explain_value,
    extra_settings,
    unknown_setting,
)
from torchrl_reg.training.cli.help import help_text
from torchrl_reg.training.cli.overrides import check_switches, default_folder, readable, telling
from torchrl_reg.training.errors import ConfigError, Interrupted, stop_behind, user_sentence
from torchrl_reg.training.run.run_folder import COMMAND, RunFolder, command
from torchrl_reg.training.seeds.seeds_together import train_seeds
from torchrl_reg.training.settings import RecipeConfig, validate

Train = Callable[[Any], Path]

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PATIENCE_SECONDS = 5.0


def recipe(config_class: type[RecipeConfig], train: Train) -> Callable[[], None]:
    """Returns the ``main()`` of a recipe: reads the command line and calls ``train(config)``.

    ``config`` is an instance of ``config_class``. Without ``run.dir`` the folder is
    ``results/<recipe>/<env>/<settings>/seed=<seed>``; a finished run is reported, not repeated.
    Exit codes: 0 done, 1 user error (one sentence on stderr), 130 or 128 + n stopped by a signal. A
    bug keeps its traceback, and with ``HYDRA_FULL_ERROR=1`` so does every other error.

    ``--check`` runs nothing: it reads a JSON list of lists of overrides from stdin and rejects the first bad one, so
    that a launcher can check all settings of a sweep in one process.
    """
    script = Path(inspect.getfile(train)).resolve()
    name = script.stem
    conf = script.parent / "conf"
    full_errors = os.environ.get("HYDRA_FULL_ERROR") == "1"
    main_process = os.getpid()
    ConfigStore.instance().store(name=name, node=_schema(config_class, name))

    def job(cfg: DictConfig) -> str:
        try:
            return str(_run(cfg, config_class, script, train))
        except Exception as error:
            if stop := stop_behind(error):
                raise stop from None
            sentence = user_sentence(error)
            # A launcher's worker must pass back the exception itself, not an exit code.
            if sentence is None or full_errors or os.getpid() != main_process:
                raise
            _fail(sentence)

    def main() -> None:
        if sys.argv[1:] == ["--check"]:
            return _check(json.load(sys.stdin), config_class, conf, name)
        sys.argv[1:] = readable(sys.argv[1:], config_class)
        check_flags(sys.argv[1:], _fail)
        check_removals(sys.argv[1:], _fail)
        check_switches(sys.argv[1:], config_class, _fail)
        if {"-h", "--help"} & set(sys.argv[1:]):
            return _help(sys.argv[1:], config_class, train, conf, name)
        entry = hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)
        try:
            with _full_hydra_errors(), _signals_as_exceptions():
                entry()
        except (KeyboardInterrupt, Interrupted) as stop:
            number = getattr(stop, "signal_number", signal.SIGINT)
            print(f"\nstopped; the same command continues: {command()}", file=sys.stderr)
            sys.exit(128 + number)
        except Exception as error:
            # A worker's user error arrives through its launcher.
            sentence = user_sentence(error) or explain(error, config_class, conf)
            if sentence is None or full_errors:
                raise
            _fail(sentence)

    return main


def _schema(config_class: type[RecipeConfig], name: str) -> DictConfig:
    """The dataclass as Hydra's primary config: defaults list first, without Hydra's folders and logs."""
    schema = OmegaConf.structured(config_class)
    defaults: list[Any] = ["_self_", *({group: c} for group, c in config_class.groups.items())]
    defaults += [{"override hydra/job_logging": "none"}, {"override hydra/hydra_logging": "none"}]
    with open_dict(schema):
        schema.defaults = defaults
        schema.hydra = {
            "job": {"name": name},
            "output_subdir": None,
            "run": {"dir": "."},
            "sweep": {"dir": f"results/multirun/{name}", "subdir": "."},
        }
    return schema


def _run(cfg: DictConfig, config_class: type, script: Path, train: Train) -> Path:
    """Trains one seed, or several side by side; returns the folder of the first."""
    # As typed: read one by one, they are resolved in Hydra's own config, where ${algo.tau} is nothing.
    overrides = cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))
    shown = os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)
    COMMAND.set(shlex.join(["python", shown, *overrides]))
    given = _typed(cfg, config_class, script.parent / "conf")
    if given.run.seeds is None:
        given.run.dir = given.run.dir or str(_folder(cfg, overrides, script))
        configs = [given]
    else:  # a folder each, so that any of them can also be continued on its own
        parent = Path(given.run.dir) if given.run.dir else _folder(cfg, overrides, script).parent
        configs = [_of_seed(given, seed, parent) for seed in given.run.seeds]
    unfinished = [config for config in configs if not _is_done(config)]
    if unfinished:
        train_seeds(train, unfinished)
    return Path(configs[0].run.dir)


def _of_seed(config: Any, seed: int, parent: Path) -> Any:
    run = dataclasses.replace(config.run, seed=seed, seeds=None, dir=str(parent / f"seed={seed}"))
    return dataclasses.replace(copy.deepcopy(config), run=run)


def _is_done(config: Any) -> bool:
    folder = RunFolder(config)
    if folder.is_done:
        print(f"already finished: {folder.path}", flush=True)
    return folder.is_done


def _folder(cfg: DictConfig, overrides: Sequence[str], script: Path) -> Path:
    """The default folder, named after the settings that differ from the defaults, however they were written."""

    def composed(chosen: Sequence[str]) -> DictConfig:
        with ExitStack() as stack:
            if not GlobalHydra().is_initialized():  # in a worker of a launcher
                conf = str(script.parent / "conf")
                stack.enter_context(hydra.initialize_config_dir(version_base="1.3", config_dir=conf))
            return hydra.compose(config_name=script.stem, overrides=list(chosen))

    env = HydraConfig.get().runtime.choices.get("env")
    as_typed = default_folder(script.stem, env, overrides, cfg.run.seed)
    if as_typed.exists():  # from an earlier version, which used this name
        return as_typed
    return default_folder(script.stem, env, telling(overrides, cfg, composed), cfg.run.seed)


def _check(settings: Sequence[Sequence[str]], config_class: type, conf: Path, name: str) -> None:
    """Composes and validates each list of overrides and prints its config as a line of JSON.

    Stops with one sentence at the first that cannot be run.
    """
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            for overrides in settings:
                words = readable(overrides, config_class)
                check_removals(words, _fail)
                check_switches(words, config_class, _fail)
                config = _typed(hydra.compose(config_name=name, overrides=words), config_class, conf)
                print(json.dumps(dataclasses.asdict(config), default=str))
    except Exception as error:
        sentence = user_sentence(error) or explain(error, config_class, conf)
        if sentence is None:
            raise
        _fail(sentence)


def _help(words: Sequence[str], config_class: type, train: Train, conf: Path, name: str) -> None:
    """Prints the settings that result from ``words``, and the choices this recipe supports."""
    overrides = [word for word in words if not word.startswith("-")]
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf)):
            config = hydra.compose(config_name=name, overrides=overrides)
            print(help_text(config_class, train, conf, config))
    except Exception as error:
        sentence = user_sentence(error) or explain(error, config_class, conf)
        if sentence is None:
            raise
        _fail(sentence)


def _typed(cfg: DictConfig, config_class: type, conf: Path) -> Any:
    """The config as an instance of ``config_class``, validated."""
    check_interpolations(cfg)
    for name in extra_settings(cfg):
        raise ConfigError(unknown_setting(name, config_class, conf))
    try:
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(explain_value(error, error, config_class, conf)) from error
    validate(config)
    return config


def _fail(sentence: str) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(1)


@contextmanager
def _full_hydra_errors() -> Iterator[None]:
    """Makes Hydra raise its errors; otherwise it prints them over several lines and exits."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Stops on Ctrl-C, SIGTERM and SIGUSR1/2 unless something else (submitit) already handles them.

    Later ones change nothing while the run stops; if that takes long, the next ends the process where it stands.
    """
    stopped_at: float | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal stopped_at
        if stopped_at is None:
            stopped_at = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else Interrupted(number)
        if time.monotonic() - stopped_at > _PATIENCE_SECONDS:
            os._exit(128 + number)

    by_default = (signal.SIG_DFL, signal.default_int_handler)
    ours = {each: signal.getsignal(each) for each in _STOPPING if signal.getsignal(each) in by_default}
    for each in ours:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, before in ours.items() if stopped_at is None else ():  # else the process is about to end
            signal.signal(each, before)
