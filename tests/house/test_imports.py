"""Allowed imports between folders: none from ``lab`` outside of it, no cycles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "torchrl_reg"
SCIENCE = {"functional", "tabular", "regularizers", "modules", "objectives", "planning", "envs", "collectors"}
#: Beside its own modules and those that its rooms may import.
ALLOWED = {
    "functional": set(),
    "tabular": {"functional"},
    "regularizers": {"functional"},
    "modules": {"regularizers", "functional", "compat"},
    "envs": {"regularizers", "tabular"},
    "collectors": {"modules", "regularizers", "compat"},
    "objectives": {"modules", "regularizers", "functional", "compat"},
    "planning": {"modules", "regularizers", "tabular", "functional"},
    "testing": {*SCIENCE, "compat"},
    # Never objectives or planning: a run takes any loss.
    "lab": {"envs", "collectors", "modules", "regularizers", "tabular", "testing", "compat"},
}
#: Third-party packages that only the laboratory may import.
LAB_ONLY = {"hydra", "omegaconf", "submitit", "matplotlib", "tqdm", "wandb"}
OPTIONAL = {"ale_py", "minatar", "Box2D", "mujoco", "gymnasium_robotics", "numba"}
PATHS = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}


def imports(path: Path, *, with_types: bool = True) -> Iterator[str]:
    """Every module that ``path`` imports, also within functions; ``with_types``: also for type checkers alone."""
    tree = ast.parse(path.read_text())
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    for_types = set() if with_types else {part for block in blocks for part in ast.walk(block)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else str(node.module) for name in names}


def forbidden(path: Path) -> Iterator[str]:
    """Imports of ``path`` that its folder may not have."""
    room, *below = path.relative_to(PACKAGE).with_suffix("").parts
    for name in imports(path):
        top, *inside = name.split(".")
        third_party = top not in sys.stdlib_module_names and top not in ("torch", "torchrl_reg")
        if (
            (top == "torchrl_reg" and inside and room in ALLOWED and inside[0] not in {room, *ALLOWED[room]})
            or (top in LAB_ONLY and room != "lab")
            or (third_party and room in ("functional", "tabular"))
            or (top == "torch" and below[:1] == ["analysis"])
            or (inside[:2] == ["lab", "learners"] and below[:1] == ["run"])
            or top in ("recipes", "slurm", "studies")
        ):
            yield name


def test_rooms_import_only_what_stands_below_them() -> None:
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix in ("", ".py")} - {"__init__", "__pycache__"} == {
        *SCIENCE,
        "compat",
        "testing",
        "lab",
    }
    assert {str(path.relative_to(ROOT)): names for path in PATHS if (names := list(forbidden(path)))} == {}


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: (set(imports(path, with_types=False)) & set(MODULES)) - {name} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_library_imports_without_any_extra() -> None:
    """torch, torchrl and gymnasium are enough for everything above the laboratory."""
    blocked = sorted(LAB_ONLY | OPTIONAL)
    modules = ", ".join(f"torchrl_reg.{room}" for room in sorted({*SCIENCE, "testing", "lab.agents"}))
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        f"import torchrl_reg, {modules}, torchrl_reg.objectives.value; torchrl_reg.load_policy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "torchrl_reg", "recipes", "slurm", "tests", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed
