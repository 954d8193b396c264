"""Quick use without a sweep: ``python recipes/x.py -m hydra/launcher=submitit_slurm``."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from sweep_harness import ROOT

RECIPE = ROOT / "tests" / "training" / "recipe" / "tiny_dqn.py"


@pytest.mark.slurm
def test_a_multirun_of_a_recipe_goes_to_slurm(cluster, tmp_path):
    tmp_path.chmod(0o755)
    command = [sys.executable, str(RECIPE), "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5"]
    command += ["hydra.launcher.partition=low", "run.seed=0,1", "algo.total_frames=200", "run.progress=false"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folders = sorted(tmp_path.glob("results/tiny_dqn/cartpole/*/seed=*"))
    assert [folder.name for folder in folders] == ["seed=0", "seed=1"]
    for folder in folders:
        assert json.loads((folder / "done.json").read_text())["frames"] >= 200
        (start,) = json.loads((folder / "provenance.json").read_text())["starts"]
        assert "SLURM_JOB_ID" in start["slurm"]
