"""A copy of the code, made when a sweep is launched: later edits do not affect queued runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from slurm.code_digest import digest, is_edited, only_code
from torchrl_reg import __version__
from torchrl_reg.lab.errors import UserError

# In a checkout recipes and slurm lie beside the package; where a wheel put them, they lie within it.
_BESIDE = Path(__file__).resolve().parents[1]
_PACKAGE = _BESIDE / "torchrl_reg" if (_BESIDE / "torchrl_reg").is_dir() else _BESIDE
ROOT = _PACKAGE.parent
_FOLDERS = {"torchrl_reg": _PACKAGE, "recipes": _BESIDE / "recipes", "slurm": _BESIDE / "slurm"}


@dataclass(frozen=True)
class Code:
    """The code of a sweep: its commit (of a wheel the version), and the digest of the files that affect results."""

    commit: str
    uncommitted_changes: bool
    digest: str

    @property
    def folder_name(self) -> str:
        return f"{self.commit[:7]}-{self.digest[:8]}"

    @property
    def label(self) -> str:
        """The commit, with a plus for changes that were not committed."""
        return self.commit + "+" * self.uncommitted_changes


def recipe_path(recipe: str, code: Path) -> Path:
    """The path of a recipe in a copy of the code: of ours by name, of yours by path."""
    if recipe.endswith(".py"):
        source = Path(recipe).resolve()
        return code / _own_folder(source.parent) / source.name
    return code / "recipes" / f"{recipe}.py"


def recipe_source(recipe: str) -> Path:
    """The file of a recipe on disk.

    Raises:
        UserError: there is none.
    """
    path = Path(recipe).resolve() if recipe.endswith(".py") else _FOLDERS["recipes"] / f"{recipe}.py"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in _FOLDERS["recipes"].glob("*.py")))
        raise UserError(f"sweep.recipe must be one of {known}, or the path of a recipe, got {recipe}.")
    return path


def code_files(recipes: Iterable[str], overrides: Iterable[str] = ()) -> dict[str, Path]:
    """All files of a copy by name: ours, and those beside your own recipes (modules and ``conf/``).

    An override such as ``regularizer._target_=my_module.Mine`` or ``env.import_module=my_module`` adds a module or a
    package of the working directory.
    """
    files = {
        f"{name}/{path.relative_to(folder)}": path
        for name, folder in _FOLDERS.items()
        for path in folder.rglob("*")
        if name != "torchrl_reg" or path.relative_to(folder).parts[0] not in _FOLDERS
    }
    for source in sorted({recipe_source(recipe).parent for recipe in recipes}):
        if source != _FOLDERS["recipes"]:
            for path in (*source.glob("*.py"), *source.glob("conf/**/*.yaml")):
                files[str(_own_folder(source) / path.relative_to(source))] = path
    named = (re.search(r"\._target_=(\w+)\.|env\.import_module=['\"]?(\w+)", text) for text in overrides)
    for name in {match[1] or match[2] for match in named if match} - set(_FOLDERS):
        for path in (Path(f"{name}.py"), *Path(name).glob("**/*.py")):
            files[str(path)] = path.resolve()
    return only_code(files)


def current_code(files: Mapping[str, Path]) -> Code:
    """The code of these files as they are on disk."""
    found = digest(files)
    # Installed inside another repository, these files have a commit around them that is not theirs.
    if not _git("ls-files", "torchrl_reg/__init__.py"):
        return Code(__version__, False, found)
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return Code(_git("rev-parse", "HEAD"), bool(changes), found)


def require_whole(code: Code, copy: Path) -> None:
    """Checks that a copy still holds the code that was launched.

    Raises:
        UserError: it does not.
    """
    if is_edited(copy, code.digest):
        raise UserError(
            f"{copy} must hold the code that was launched, got changed files: put them back, or choose another name=."
        )


def copy_code(files: Mapping[str, Path], folder: Path) -> Path:
    """Copies the files to ``folder`` once, atomically."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        for name, path in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, partial / name)
        partial.rename(folder)
    return folder


def _own_folder(source: Path) -> Path:
    return Path("own") / sha256(str(source).encode()).hexdigest()[:8]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
