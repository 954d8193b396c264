"""Who may import whom (design: each floor stands on those below it)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "torchrl_reg"
ALLOWED = {
    "functional": {"functional"},
    "tabular": {"tabular", "functional"},
    "regularizers": {"regularizers", "functional"},
    "modules": {"modules", "regularizers", "functional", "torchrl_compat"},
    "envs": {"envs", "tabular"},
    "objectives": {"objectives", "modules", "regularizers", "functional", "torchrl_compat"},
    "planning": {"planning", "modules", "regularizers", "tabular", "functional"},
    "agents": {"agents", "printable", "modules", "regularizers", "envs", "tabular"},
    "collectors": {"collectors", "modules", "regularizers", "torchrl_compat"},
    "training": {"training", "collectors", "folder_names", "run_owner", "agents", "modules", "torchrl_compat"},
    "analysis": {"analysis", "printable", "run_endings"},
    "run_endings": {"run_endings", "printable"},
    "run_owner": {"run_owner"},
    "studies": {"studies", "analysis"},
    "doctor": {"doctor", "envs", "analysis"},
    "commands": {"commands", "printable", "run_endings", "analysis", "doctor", "agents", "training", "envs"},
}
#: Third-party packages that only the top floor may import.
TOP_FLOOR_ONLY = {"hydra", "omegaconf", "submitit", "matplotlib", "tqdm", "wandb"}
OPTIONAL = {"ale_py", "minatar", "Box2D", "mujoco", "gymnasium_robotics", "numba"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found.add(node.module or "")
    return found


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_floors(path: Path) -> None:
    floor = path.relative_to(PACKAGE).parts[0]
    if floor not in ALLOWED:
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "torchrl_reg" and len(parts) > 1:
            assert parts[1] in ALLOWED[floor], f"{path.relative_to(ROOT)} must not import {name}"
        if floor not in ("training", "analysis", "studies", "commands"):
            assert parts[0] not in TOP_FLOOR_ONLY, f"{path.relative_to(ROOT)} must not import {name}"
        if floor in ("functional", "tabular"):
            third_party = parts[0] not in sys.stdlib_module_names and parts[0] not in ("torch", "torchrl_reg")
            assert not third_party, f"{path.relative_to(ROOT)} must not import {name}"
        if floor == "analysis":
            assert parts[0] != "torch", f"{path.relative_to(ROOT)} must not import torch"


def test_the_library_imports_without_any_extra() -> None:
    """torch, torchrl and gymnasium are enough for everything below the training floor."""
    blocked = sorted(TOP_FLOOR_ONLY | OPTIONAL)
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import torchrl_reg, torchrl_reg.functional, torchrl_reg.tabular, torchrl_reg.modules\n"
        "import torchrl_reg.envs, torchrl_reg.collectors, torchrl_reg.objectives, torchrl_reg.objectives.value\n"
        "import torchrl_reg.planning, torchrl_reg.agents; torchrl_reg.load_policy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small_and_are_named_for_their_content(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "helpers", "common", "base", "misc"}


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "objectives").rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_functions_of_losses_stay_small(path: Path) -> None:
    """At most 45 lines of code, those of the docstring not counted."""
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef):
            last = function.end_lineno or 0
            first = function.lineno
            if ast.get_docstring(function):
                first += (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
            assert last - first < 45, f"{function.name} has {last - first + 1} lines"


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "torchrl_reg", "recipes", "slurm", "tests", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed
