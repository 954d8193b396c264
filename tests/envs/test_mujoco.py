"""What building MuJoCo's tasks leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_building_prints_nothing_and_leaves_no_file(tmp_path):
    code = (
        "from torchrl_reg.envs import EnvSettings, make_env\n"
        "for name, game in (('mujoco', 'halfcheetah'), ('adroit', 'door')):\n"
        "    make_env(EnvSettings(name, game=game), 2).rollout(3)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
