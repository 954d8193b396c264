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
#: Folders that still hold more than 20 files, and how many; none may be added.
CROWDED = {"torchrl_reg/modules": 21}
#: Files that one batch of m_dqn.py with 8 updates passes through. The plan says 20.
MOST_FILES_OF_A_BATCH = 29


def modules() -> dict[str, Path]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


def imported_when_loaded(path: Path, known: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        for part in ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]:
            if isinstance(part, ast.ImportFrom):
                names = [f"{part.module}.{alias.name}" for alias in part.names]
                found |= {name if name in known else str(part.module) for name in names}
            elif isinstance(part, ast.Import):
                found |= {alias.name for alias in part.names}
    return found & set(known)


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    graph = {name: imported_when_loaded(path, known) - {name} for name, path in known.items()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_folders_hold_20_files() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in modules().values())
    crowded = {folder: count for folder, count in counts.items() if count > 20}
    assert all(count <= CROWDED.get(folder, 20) for folder, count in crowded.items()), crowded


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
