"""``torchrl-reg run``, ``launch`` and ``status``: the scripts of ``recipes/`` and ``slurm/``, from any folder.

In a checkout the two folders are beside the package; in a wheel, which installs one top-level name, they are inside it.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import importlib.util
import os
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from torchrl_reg.lab.cli.invocation import script_folder, started_as
from torchrl_reg.lab.errors import UserError
from torchrl_reg.lab.run.folder import is_done

_PACKAGE = Path(__file__).resolve().parents[2]
# Files of a finished run with a policy.
_FINAL_FILES = ("done.json", "metrics.jsonl", "policy.safetensors", "checkpoints")


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Adds nothing: all arguments are passed on to the script, ``--help`` included."""


def run(args: argparse.Namespace) -> int:
    """Runs the script with the arguments after the command.

    Raises:
        UserError: no such recipe.
    """
    if args.command == "run":
        return _run_recipe(args.words)
    sys.argv = [f"torchrl-reg {args.command}", *args.words]
    with started_as("torchrl-reg", args.command):
        sweep_module(args.command).main()
    return 0


def sweep_module(name: str) -> ModuleType:
    """Imports ``slurm.<name>``, which is on ``sys.path`` only in a checkout.

    >>> sweep_module("sweep").__name__
    'slurm.sweep'
    """
    if "slurm" not in sys.modules:
        folder = script_folder("slurm")
        places = [str(folder)]
        spec = importlib.util.spec_from_file_location(
            "slurm", folder / "__init__.py", submodule_search_locations=places
        )
        assert spec is not None and spec.loader is not None
        package = sys.modules["slurm"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"slurm.{name}")


def _run_recipe(words: Sequence[str]) -> int:
    """Runs ``python recipes/NAME.py WORDS`` in this process; ``NAME`` may also be the path of a user's recipe."""
    recipes = {each.stem: each for each in sorted(script_folder("recipes").glob("*.py"))}
    if not words or words[0] in ("-h", "--help"):
        print("usage: torchrl-reg run RECIPE [name=value ...]; torchrl-reg run RECIPE --help for its settings\n")
        for stem, script in recipes.items():
            print(f"  {stem:16s} {(ast.get_docstring(ast.parse(script.read_text())) or '').partition(chr(10))[0]}")
        return 0
    name = words[0]
    path: Path | None = Path(name).resolve() if name.endswith(".py") else recipes.get(name)
    if path is None or not path.is_file():
        close = difflib.get_close_matches(name, recipes, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"run needs one of {', '.join(recipes)}, or the path of a recipe, got {name}{hint}.")
    if finished := _finished(words, path):
        print(f"already finished: {finished}")
        return 0
    sys.argv = [str(path), *words[1:]]
    sys.path.insert(0, str(path.parent))
    with started_as("torchrl-reg", "run", name):
        runpy.run_path(str(path), run_name="__main__")
    return 0


def _finished(words: Sequence[str], script: Path) -> Path | None:
    """The folder of a finished run of the same command, found without importing torch, which takes seconds.

    None also if only the recipe can decide: several seeds, options, missing files, or code newer than the run.
    """
    overrides = dict(word.partition("=")[::2] for word in words[1:])
    if "run.seeds" in overrides or any(word.startswith("-") or "${" in word or "hydra" in word for word in words):
        return None
    defaults = Path("results", script.stem).glob("*/*/seed=*")
    folders = [Path(os.path.expanduser(overrides["run.dir"]))] if "run.dir" in overrides else defaults
    command = shlex.join(["torchrl-reg", "run", *words])
    try:
        for folder in folders:
            complete = is_done(folder) and all((folder / name).exists() for name in _FINAL_FILES)
            if complete and (folder / "command.txt").read_text(encoding="utf-8").strip() == command:
                done_at = (folder / "done.json").stat().st_mtime
                return folder if all(path.stat().st_mtime < done_at for path in _code(script)) else None
    except (OSError, ValueError):  # the recipe reports the error
        return None
    return None


def _code(script: Path) -> Iterator[Path]:
    """The files that determine the result of a command: the package and those beside the recipe."""
    yield from _PACKAGE.rglob("*.py")
    yield from script.parent.glob("*.py")
    yield from script.parent.glob("studies/*.py")
    yield from script.parent.glob("conf/**/*.yaml")
