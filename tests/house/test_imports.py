"""Who may import whom (design: each floor stands on those below it)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "torchrl_reg"
ALLOWED = {
    "functional": {"functional"},
    "tabular": {"tabular", "functional"},
    "regularizers": {"regularizers", "functional"},
    "modules": {"modules", "regularizers", "functional", "compat"},
    "envs": {"envs", "tabular"},
    "objectives": {"objectives", "modules", "regularizers", "functional", "compat"},
    "planning": {"planning", "modules", "regularizers", "tabular", "functional"},
    "agents": {"agents", "printable", "modules", "regularizers", "envs", "tabular"},
    "collectors": {"collectors", "modules", "regularizers", "compat"},
    "training": {"training", "collectors", "field_comments", "folder_names", "invocation", "run_owner"}
    | {"agents", "modules", "compat"},
    "analysis": {"analysis", "printable", "run_endings"},
    "run_endings": {"run_endings", "printable"},
    "run_owner": {"run_owner"},
    "studies": {"studies", "analysis"},
    "doctor": {"doctor", "envs", "analysis"},
    "testing": {"testing", "tabular", "modules", "regularizers", "printable", "compat"},
    "commands": {"commands", "invocation", "printable", "run_endings", "analysis", "doctor", "agents", "training"}
    | {"envs", "testing"},
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


def forbidden(path: Path) -> Iterator[str]:
    """What ``path`` imports and its floor may not."""
    floor = path.relative_to(PACKAGE).parts[0]
    if floor not in ALLOWED:
        return
    for name in imports(path):
        top, *below = name.split(".")
        third_party = top not in sys.stdlib_module_names and top not in ("torch", "torchrl_reg")
        if (
            (top == "torchrl_reg" and below and below[0] not in ALLOWED[floor])
            or (top in TOP_FLOOR_ONLY and floor not in ("training", "analysis", "studies", "commands"))
            or (third_party and floor in ("functional", "tabular"))
            or (top == "torch" and floor == "analysis")
        ):
            yield name


def test_floors() -> None:
    found = {str(path.relative_to(ROOT)): names for path in files() if (names := list(forbidden(path)))}
    assert not found


def test_the_library_imports_without_any_extra() -> None:
    """torch, torchrl and gymnasium are enough for everything below the training floor."""
    blocked = sorted(TOP_FLOOR_ONLY | OPTIONAL)
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import torchrl_reg, torchrl_reg.functional, torchrl_reg.tabular, torchrl_reg.modules\n"
        "import torchrl_reg.envs, torchrl_reg.collectors, torchrl_reg.objectives, torchrl_reg.objectives.value\n"
        "import torchrl_reg.planning, torchrl_reg.lab.agents, torchrl_reg.testing; torchrl_reg.load_policy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
