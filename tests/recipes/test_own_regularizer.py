"""A user's class works like ours in training, saving, evaluation, resuming, sweeps and planning."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from slurm.snapshot import code_files
from torchrl_reg import load_policy
from torchrl_reg.lab.commands.main import main
from torchrl_reg.lab.errors import UserError
from torchrl_reg.planning import E2W, Planner, SyntheticTrees
from torchrl_reg.regularizers import Entropy, check_regularizer

SOURCE = Path(__file__).parent / "own_regularizer.py"
WORDS = "q_learning regularizer._target_=own_regularizer.LogBarrier +regularizer.tau=0.2 shaping=munchausen"
WORDS += " net.num_cells=[16] algo.total_frames=2000 algo.eps_frames=500 run.evaluate_every_frames=1000"
WORDS += " run.eval_episodes=2 run.log_every_frames=500 run.checkpoint_every_frames=500"


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """The module in the working directory, as a user has it, and not yet imported."""
    shutil.copy(SOURCE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_regularizer", raising=False)
    yield tmp_path
    sys.modules.pop("own_regularizer", None)


@pytest.fixture
def log_barrier(beside):
    sys.path.insert(0, str(beside))
    return importlib.import_module("own_regularizer").LogBarrier


def test_it_is_a_regularizer(log_barrier):
    check_regularizer(log_barrier(0.3), tolerance=1e-6)


def test_it_is_planned_with(log_barrier):
    """A search whose nodes are worth its value, and whose actions are its policy's, finds the exact value."""
    own, trees = log_barrier(0.1), SyntheticTrees(branching=3, depth=3, num_trees=5, seed=0)
    found = Planner(E2W(1.0), own, num_simulations=400)(trees, trees.roots())
    torch.testing.assert_close(found.q, trees.root_q(own), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(found.value, trees.root_value(own), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(found.pi, own(trees.root_q(own)).pi, atol=1e-9, rtol=0.0)
    assert (found.value - trees.root_value(Entropy(0.1))).abs().min() > 0.01


def test_it_is_trained_and_evaluated_and_loaded_only_where_it_is_trusted(start, beside, capsys):
    start(WORDS)
    assert "load_policy" not in capsys.readouterr().out
    assert main(["evaluate", "run", "--episodes", "2"]) == 0 and "sampled" in capsys.readouterr().out
    assert type(load_policy("run").regularizer).__name__ == "LogBarrier"  # the caller has imported it
    del sys.modules["own_regularizer"]
    with pytest.raises(UserError, match="names the module 'own_regularizer', which is not imported"):
        load_policy("run")
    assert main(["evaluate", "run", "--episodes", "2"]) == 1 and "own_regularizer" not in sys.modules
    assert main(["evaluate", "run", "--episodes", "2", "--trust", "own_regularizer"]) == 0


def test_a_run_needs_no_trust_in_its_own_folder(start, beside):
    """Not even for videos, which are made of its policy's file."""
    pytest.importorskip("PIL.Image")
    pytest.importorskip("pygame")
    network = "class Network(nn.Linear):\n    def __init__(self, settings, env):\n        super().__init__(4, 2)\n"
    (beside / "own_network.py").write_text(f"from torch import nn\n\n\n{network}")
    words = f"{WORDS} head.network._target_=own_network.Network run.video_every_frames=1000 env.max_episode_frames=6"
    start(words)
    assert len(list((beside / "run/videos").iterdir())) == 2


def test_it_resumes(start, kill, beside):
    whole = start(WORDS, "whole")
    kill(WORDS, "killed", rows=1)
    assert start(WORDS, "killed") == whole
    assert len(json.loads((beside / "killed/provenance.json").read_text())["starts"]) == 2


def test_a_sweep_carries_its_module_along(beside):
    files = code_files(["q_learning"], ["regularizer._target_=own_regularizer.LogBarrier"])
    assert files["own_regularizer.py"] == beside / "own_regularizer.py"
    assert "own_regularizer.py" not in code_files(
        ["q_learning"], ["regularizer._target_=torchrl_reg.regularizers.Entropy"]
    )
