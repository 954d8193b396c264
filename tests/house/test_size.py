"""The house stays one that a stranger can walk through: no circles, small rooms, a short way through one batch."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "torchrl_reg"
#: Files that one batch of m_dqn.py with 8 updates passes through.
MOST_FILES_OF_A_BATCH = 20


PATHS = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}


def imported_when_loaded(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        for part in ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]:
            if isinstance(part, ast.ImportFrom):
                names = [f"{part.module}.{alias.name}" for alias in part.names]
                found |= {name if name in MODULES else str(part.module) for name in names}
            elif isinstance(part, ast.Import):
                found |= {alias.name for alias in part.names}
    return found & set(MODULES)


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imported_when_loaded(path) - {name} for name, path in MODULES.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_folders_hold_20_files() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in PATHS)
    assert {folder: n for folder, n in counts.items() if n > 20} == {}


def test_files_stay_small_and_are_named_for_their_content() -> None:
    assert {path.name: n for path in PATHS if (n := len(path.read_text().splitlines())) > 400} == {}
    assert not {path.stem for path in PATHS} & {"utils", "helpers", "common", "base", "misc"}


def test_functions_of_losses_stay_small() -> None:
    """At most 45 lines, those of the docstring not counted."""
    long = {}
    for path in (PACKAGE / "objectives").rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                docstring = function.body[0] if ast.get_docstring(function) else None
                lines = (function.end_lineno or 0) - function.lineno + 1
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
                long |= {f"{path.name} {function.name}": lines} if lines > 45 else {}
    assert long == {}


def test_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    allowed = {"pyproject.toml", "torchrl_reg", "recipes", "slurm", "tests", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} <= allowed


COUNTER = """
import json, sys, threading
from torchrl_reg.objectives.q_learning import QLearningLoss
import m_dqn

seen, calls, forward = set(), [0], QLearningLoss._target

def look(frame, event, arg):
    if event == "call":
        seen.add(frame.f_code.co_filename)

def counted(self, *args, **kwargs):
    calls[0] += 1
    if calls[0] in (400, 408):
        sys.setprofile(look if calls[0] == 400 else None)
    return forward(self, *args, **kwargs)

QLearningLoss._target = counted
m_dqn.main()
sys.setprofile(None)
print("FILES", json.dumps(sorted(seen)))
"""


def test_a_batch_passes_through_few_files(tmp_path: Path) -> None:
    settings = ["algo.total_frames=4000", "run.progress=false", f"run.dir={tmp_path / 'run'}", "net.num_cells=[16]"]
    settings += ["run.eval_episodes=1", "run.log_every_frames=100000"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "recipes")])
    done = subprocess.run(
        [sys.executable, "-c", COUNTER, *settings],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FILES"))
    ours = [name for name in json.loads(line[5:]) if str(PACKAGE) in name or str(ROOT / "recipes") in name]
    assert 5 < len(ours) <= MOST_FILES_OF_A_BATCH, "\n".join(ours)
