"""A class of one's own is trained, saved, evaluated, resumed, swept and planned with as ours are."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from slurm.snapshot import code_files
from torchrl_reg.planning import E2W, Planner, SyntheticTrees
from torchrl_reg.regularizers import Entropy, check_regularizer
from torchrl_reg.training import read_metrics, strip_wall_clock

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
SETTINGS = ["regularizer=own", "regularizer.path=own_regularizer:LogBarrier", "regularizer.tau=0.2"]
SETTINGS += ["shaping=munchausen", "net.num_cells=[16]", "algo.total_frames=2000", "algo.eps_frames=500"]
SETTINGS += ["run.evaluate_every_frames=1000", "run.eval_episodes=2", "run.log_every_frames=500", "run.progress=false"]


EVERY = "run.checkpoint_every_frames=500"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def python(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def command(run: str, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "recipes/q_learning.py"), f"run.dir={run}", *SETTINGS, *more]


def train(folder: Path, run: str, *more: str) -> subprocess.CompletedProcess[str]:
    """In a folder with the module, as a user does."""
    shutil.copy(HERE / "own_regularizer.py", folder)
    return python(*command(run, *more)[1:], folder=folder)


def rows(folder: Path) -> list[dict[str, object]]:
    return [strip_wall_clock(row) for row in read_metrics(folder / "metrics.jsonl")]


def test_it_is_a_regularizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    kind = importlib.import_module("own_regularizer").LogBarrier
    assert len((HERE / "own_regularizer.py").read_text().split("import torch\n")[1].strip().splitlines()) <= 30
    check_regularizer(kind(0.3), tolerance=1e-6)


def test_it_is_planned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search whose nodes are worth its value, and whose actions are its policy's, finds the exact value."""
    monkeypatch.syspath_prepend(str(HERE))
    own = importlib.import_module("own_regularizer").LogBarrier(0.1)
    trees = SyntheticTrees(branching=3, depth=3, num_trees=5, seed=0)
    found = Planner(E2W(1.0), own, num_simulations=400)(trees, trees.roots())
    torch.testing.assert_close(found.q, trees.root_q(own), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(found.value, trees.root_value(own), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(found.pi, own(trees.root_q(own)).pi, atol=1e-9, rtol=0.0)
    assert (found.value - trees.root_value(Entropy(0.1))).abs().min() > 0.01


LOADED = """
import sys
from pathlib import Path
from torchrl_reg import load_policy
from torchrl_reg.agents import AgentError

def said():
    try:
        return type(load_policy("run").regularizer).__name__
    except AgentError as error:
        return str(error)

beside = sys.path.pop(0)
print(said())
sys.path.insert(0, beside)
proof = Path("run/provenance.json").rename("elsewhere")  # as in an exported folder, which may come from anybody
print(said())
proof.rename("run/provenance.json")
print(said())
"""


def test_it_is_trained_saved_loaded_evaluated_and_resumed(tmp_path: Path) -> None:
    done = train(tmp_path, "run", EVERY)
    assert done.returncode == 0 and "load_policy" not in done.stdout, done.stderr
    whole = rows(tmp_path / "run")
    loaded = python("-c", LOADED, folder=tmp_path)
    assert loaded.returncode == 0, loaded.stderr
    no_module, foreign, loads = loaded.stdout.splitlines()
    assert "call must name what can be imported, from PYTHONPATH, got 'own_regularizer:LogBarrier'" in no_module
    assert "call must name what is imported before the policy is read" in foreign and loads == "LogBarrier"
    evaluate = ("-m", "torchrl_reg.cli", "evaluate", "run", "--episodes", "2")
    shown = python(*evaluate, folder=tmp_path)
    assert shown.returncode == 0 and "sampled" in shown.stdout, shown.stderr

    killed = subprocess.Popen(command("killed", EVERY), cwd=tmp_path, env=ENVIRONMENT)
    while not list(tmp_path.glob("killed/checkpoints/checkpoint-*")) and killed.poll() is None:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed/done.json").exists()
    assert train(tmp_path, "killed", EVERY).returncode == 0 and rows(tmp_path / "killed") == whole
    assert len(json.loads((tmp_path / "killed/provenance.json").read_text())["starts"]) == 2


def test_a_sweep_carries_its_module_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(HERE / "own_regularizer.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    files = code_files(["q_learning"], ["regularizer=own", "regularizer.path=own_regularizer:LogBarrier"])
    assert files["own_regularizer.py"] == tmp_path / "own_regularizer.py"
    assert "own_regularizer.py" not in code_files(["q_learning"], ["regularizer.path=torchrl_reg.regularizers:Entropy"])
